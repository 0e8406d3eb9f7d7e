//! The sources of objects, against real folders and a stand-in for an API server.

#[path = "support/api/mod.rs"]
mod api;
#[path = "support/certificates.rs"]
mod certificates;
#[path = "source/file.rs"]
mod file;
#[path = "source/kube.rs"]
mod kube;
#[path = "source/support.rs"]
mod support;
#[path = "source/tls.rs"]
mod tls;

//! What several tests need: a network namespace of their own, and an HTTP client.

pub(crate) mod http;
#[path = "../../tests/support/netns/mod.rs"]
pub(crate) mod netns;

pub(crate) use netns::{in_namespace as in_network_namespace, run};

/// Runs a test that awaits in a network namespace of its own.
pub(crate) fn in_network_namespace_async<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    in_network_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
}

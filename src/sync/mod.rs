//! Drives the line from objects to the kernel.
//!
//! * [`Engine`] takes events and knows which Services have to be looked at again; [`Engine::sync`] brings both tables in
//!   line. It is synchronous, generic over the [`Kernel`](crate::nftables::Kernel), and gets the time as an argument.
//! * `table` is one family's table: what is installed, what failed, when to try again.
//! * [`Standing`] says how a table stands to what is wanted of it: in line, or not, and why.
//! * [`Sample`] is one Service as a table must hold it, to be compared with what the kernel holds.
//! * [`Reader`] is a thread that reads which clients the kernel remembers; what it finds comes to the engine as [`News`].
//! * [`Counter`] is a thread that counts the open connections of Services that go by them; what comes of it goes to the engine.
//! * [`Question`] is what somebody wants to know of the cluster; it is answered between syncs.
//! * [`run`] is the loop around it: it waits for events, lets those that arrive together go together, and syncs.
//!
//! One changed Service costs what that Service costs. Loops over all Services happen at the first sync, when the kernel's
//! state has to be read back, and when a fact that concerns every Service changes (the node's zone, its addresses).

mod affinity;
mod asked;
mod balancing;
mod cluster;
mod counter;
mod crowd;
mod engine;
mod facts;
mod failure;
mod mend;
mod misfits;
mod obstacle;
mod pass;
mod question;
mod reader;
mod remembers;
mod report;
mod reports;
mod run;
mod sample;
mod standing;
mod table;
mod told;
mod udp;

pub use affinity::Purpose;
pub use cluster::{listed, serving};
pub use counter::{Counter, Counts, Tracked};
pub use engine::{Engine, Overlap};
pub use facts::Facts;
pub use obstacle::Obstacle;
pub use question::{Knowledge, Question};
pub use reader::{News, Reader};
pub use report::{FamilyReport, Report, UdpChange};
pub use run::{Disturbance, Inputs, Observer, run};
pub use sample::{NotServed, Sample};
pub use standing::{Refused, Standing};
pub use told::Told;

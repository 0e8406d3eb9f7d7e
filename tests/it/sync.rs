//! The sync engine: what it sends and how much of it, what it does when something goes wrong, and when it acts at all.

mod affinity;
mod chains;
mod disturbed;
mod extras;
mod foreign;
mod handing_over;
mod memory;
mod refusals;
mod replace;
mod run_loop;
mod sweep_times;
mod work;

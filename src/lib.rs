//! nftproxyd makes the virtual addresses of Kubernetes Services work on a node, with nothing but nftables.
//!
//! Data flows one way:
//!
//! ```text
//!  source ------> model ------> ruleset ------> diff ------> nftables -----> kernel
//!  (objects in)   (services)    (wanted)        (plan)       (its tables)
//!      I/O          pure          pure           pure         encoding pure, socket I/O
//!         sync drives the line; only facts (a dump, the result of a commit) come back to it
//!
//!                     app: builds all parts, owns every task, observes each sync
//!        +----------+----------+-----+----+---------+------------+-----------+--------------+--------------+
//!      status     doctor     health     metrics   events     conntrack   addresses      leftovers      trace
//!     (what is   (what is    (/healthz, (/metrics) (to the    (stale UDP  (of the      (what kube-proxy  (what becomes
//!      served)    wrong)      checks)               cluster)   flows)      node)         has left)        of packets)
//!
//!      explain (what becomes of a packet, and why)  stands on  status, nftables, conntrack, routing and firewall
//!      firewall (what tables of others do to one packet)  stands on  leftovers and routing (routes, interfaces)
//!      localhost (node ports on 127.0.0.1 and ::1)  stands on  conntrack, metrics, events and listening
//!         nftables, conntrack, addresses, leftovers, routing, trace, localhost  stand on  netlink  (messages, the one socket)
//!                                       nftables and netlink  stand on  sys      (what is in C, all unsafe code)
//! ```
//!
//! Who may use whom is listed in `tests/architecture`, which holds the code to it: to the left and downwards, never
//! back, and no two files use each other. `source` turns what it reads into model values at once, so that no full
//! Kubernetes object is kept, and nobody else but `events` sees Kubernetes' types. `ruleset` uses `model`, `diff` uses
//! both, `nftables` uses all three, and `sync` the whole line. `config` is what the configuration file and the flags come
//! to, `balance` (pure) how connections are shared by how many are open, `sysctl` what is set below `/proc`, `listening`
//! who listens on this node, `http` how all ports are served. Everybody may use `errors`, `keyed` (tables of values that
//! hold their own key), `secrets` (what may be shown of them), `threads` (which makes all of them), `yaml` (texts as
//! Kubernetes reads them) and `printable` (texts of others, for a line of the log); only `app` knows everybody.
//!
//! Whether the proxy is in line with what is wanted has one answer, [`sync::Standing`] of each family: log, readiness,
//! take-over, health, `status` and metrics ask it.
//!
//! A Service is *data*: elements of a fixed number of nftables sets and maps, never a chain or a rule of its own.
//! [`ruleset`] says how a packet finds its endpoint; [`diff`] how a change of one Service becomes a transaction of
//! a few elements.

pub mod addresses;
pub mod app;
pub mod balance;
pub mod cli;
pub mod config;
pub mod conntrack;
pub mod diff;
pub mod doctor;
pub mod errors;
pub mod events;
pub mod explain;
pub mod firewall;
pub mod health;
mod http;
pub mod keyed;
pub mod leftovers;
pub mod listening;
pub mod localhost;
mod logging;
pub mod metrics;
pub mod model;
mod netlink;
pub mod nftables;
mod printable;
pub mod routing;
pub mod ruleset;
mod secrets;
pub mod source;
pub mod status;
pub mod sync;
pub mod sys;
pub mod sysctl;
mod threads;
pub mod trace;
mod yaml;

#[cfg(test)]
mod testing;

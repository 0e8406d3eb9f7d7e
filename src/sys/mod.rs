//! All unsafe code of the project, what is in C: owned values over libnftnl, the memory that they are written into, the
//! socket of libmnl, a call for the heap, and descriptors that the process was given. It knows nothing of tables and Services.
//!
//! Two invariants carry the whole module.
//!
//! * An owned value holds a pointer that libnftnl allocated, that nobody else holds, and that is freed once, on drop.
//! * libnftnl and libmnl write messages without looking at the size of the buffer. Each owned value therefore keeps
//!   `bound`, an upper limit of the bytes that its payload takes: every setter adds what its attribute can add at most.
//!   `Messages` reserves that much before it lets the library write.
#![allow(unsafe_code, reason = "libnftnl, libmnl, one socket option, the heap and descriptors as numbers are C")]

mod expression;
mod inherited;
mod memory;
mod messages;
mod nftnl;
mod socket;

pub(crate) use expression::{Bytes, CName, Comparison, Expression, Lookup, PayloadBase, Register, RejectWith};
pub(crate) use inherited::inherited;
pub use memory::release_free_memory;
pub(crate) use messages::{Header, Messages};
pub(crate) use nftnl::{Chain, ElementValue, NftnlExpr, Rule, Set, SetElement, Table};
pub(crate) use socket::{ReceiveBuffer, Socket, set_option};

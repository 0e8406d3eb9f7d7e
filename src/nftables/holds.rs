//! One element, asked for by its key.

use std::io;

use super::decode;
use super::encode::Encoder;
use super::kernel::KernelError;
use super::request::unexpected;
use super::table::NOT_THERE;
use super::uapi::{self, msg};
use crate::diff::Operation;
use crate::model::Family;
use crate::netlink::{ACK, Message, REQUEST, Socket};
use crate::ruleset::names::TableName;
use crate::ruleset::types::{Element, SetDef};

/// Length of `struct nlmsghdr`, and the offsets of its type, which flags follow, and of its sequence number.
const HEADER: usize = 16;
const KIND: usize = 4;
const SEQUENCE: usize = 8;

/// Whether a set of a table holds exactly this element. A set of ranges gives those that hold the key; it has to be one of
/// them.
pub(super) fn holds(
    socket: &mut Socket,
    table: TableName,
    family: Family,
    set: &SetDef,
    element: &Element,
) -> Result<bool, KernelError> {
    let step = "read an element";
    // What names an element to delete it names it to get it.
    let mut encoder = Encoder::new(family, table.as_str(), 0);
    let operation = Operation::DeleteElements(set.name, vec![element.clone()]);
    let refused =
        |reason: String| KernelError::Io { step, source: io::Error::new(io::ErrorKind::InvalidInput, reason) };
    encoder.operation(0, &operation).map_err(|error| refused(error.reason))?;
    let batch = encoder.finish();
    let part = batch.parts().first().and_then(|part| batch.bytes().get(part.at..)).unwrap_or_default();
    let length = Message::first(part).map_or(0, |message| HEADER + message.payload.len());
    let mut request = part.get(..length).unwrap_or_default().to_vec();
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = request.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(KIND, &(uapi::SUBSYSTEM | msg::GETSETELEM).to_ne_bytes());
    put(KIND + 2, &(REQUEST | ACK).to_ne_bytes());
    put(SEQUENCE, &socket.next_sequence().to_ne_bytes());
    let mut found = false;
    let answer = socket.dump(&request, |message| {
        found |= decode::elements(&message, family, set).any(|it| it.as_ref() == Ok(element));
    });
    match answer {
        Ok(_) => Ok(found),
        Err(error) => match error.raw_os_error() {
            Some(NOT_THERE) => Ok(false),
            Some(code) => Err(unexpected(step, code)),
            None => Err(KernelError::Io { step, source: error }),
        },
    }
}

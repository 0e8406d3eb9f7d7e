//! The device of kube-proxy's mode `ipvs`. It makes the virtual addresses local, so that packets to them meet IPVS.

use std::io;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::names::DEVICE;
use super::values::terminated;
use super::{Outcome, Remaining};
use crate::netlink::{ACK, Builder, Bus, DUMP, REQUEST, Socket, attributes};

const RTM_DELLINK: u16 = 17;
const RTM_GETADDR: u16 = 22;
/// `struct ifinfomsg`: the device is named by an attribute.
const LINK_HEADER: [u8; 16] = [0; 16];
const IFLA_IFNAME: u16 = 3;
/// `struct ifaddrmsg`: of every family and device.
const ADDRESS_HEADER: [u8; 8] = [0; 8];
const IFA_ADDRESS: u16 = 1;

/// The addresses on the device, as bytes; none if it is not there.
pub(super) fn addresses() -> io::Result<Vec<Vec<u8>>> {
    let index = match if_nametoindex(DEVICE) {
        Ok(index) => index,
        Err(Errno::ENODEV) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut socket = Socket::open(Bus::Route)?;
    let request = Builder::message(RTM_GETADDR, REQUEST | DUMP, socket.next_sequence(), &ADDRESS_HEADER).finish();
    let mut found = Vec::new();
    socket.dump(&request, |message| {
        let device =
            message.payload.get(4..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_ne_bytes(*bytes));
        if device == Some(index) {
            let attributes = attributes(message.payload.get(ADDRESS_HEADER.len()..).unwrap_or_default());
            found.extend(attributes.filter(|(kind, _)| *kind == IFA_ADDRESS).map(|(_, value)| value.to_vec()));
        }
    })?;
    Ok(found)
}

/// Removes the device, with its addresses.
pub(super) fn remove(outcome: &mut Outcome) {
    match if_nametoindex(DEVICE) {
        Ok(_) => outcome.note(format!("device {DEVICE}"), delete(), format!("ip link delete {DEVICE}")),
        Err(Errno::ENODEV) => {}
        Err(errno) => outcome.remains.push(Remaining {
            what: format!("device {DEVICE} is there, or not: {errno}"),
            fix: format!("if ip link show {DEVICE} says that it is there: ip link delete {DEVICE}"),
        }),
    }
}

fn delete() -> io::Result<()> {
    let mut socket = Socket::open(Bus::Route)?;
    let request = Builder::message(RTM_DELLINK, REQUEST | ACK, socket.next_sequence(), &LINK_HEADER)
        .attribute(IFLA_IFNAME, &terminated(DEVICE))
        .finish();
    socket.execute(&request)
}

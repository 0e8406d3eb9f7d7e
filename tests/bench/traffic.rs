//! Real connections: a backend that answers at every pod's address, and a client that asks who answered.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use socket2::{Domain, Socket, Type};

use crate::netns::Namespace;

/// The port of every pod.
pub(crate) const POD_PORT: u16 = 8080;
/// A connection that works takes a tenth of a millisecond; one that takes longer than this is given up and tried anew,
/// so that no retransmission, which comes after a second, is ever waited for.
const PATIENCE: Duration = Duration::from_millis(1);
/// Ports of the client count up from here.
const FIRST_SOURCE_PORT: u16 = 10_000;
/// Before silence counts as an answer it is waited for a second time, so long.
const SILENCE: Duration = Duration::from_millis(50);
/// Between two attempts, so that the client leaves the processors to those that it waits for.
const PAUSE: Duration = Duration::from_micros(50);
/// So many connections wait for an answer at the same time: each for some milliseconds.
const AT_ONCE: usize = 64;

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod with this address took it.
    Answered(Ipv4Addr),
    /// It was refused.
    Refused,
    /// Nothing came.
    Silence,
}

impl Outcome {
    /// Whether anybody serves there.
    pub(crate) fn is_served(self) -> bool {
        matches!(self, Outcome::Answered(_))
    }
}

/// Listens at all addresses of the namespace for as long as the process lives; a client is told at which it was.
pub(crate) fn serve(namespace: &Namespace) {
    let listener = namespace.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], POD_PORT)).into())?;
        socket.listen(4096)?;
        io::Result::Ok(TcpListener::from(socket))
    });
    let listener = listener.expect("the namespace is new, and its ports are free");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if let Ok(SocketAddr::V4(address)) = stream.local_addr() {
                // A client that is gone is no concern of the server's.
                let _ = stream.write_all(&address.ip().octets());
            }
        }
    });
}

/// Connects once, from this thread's namespace.
pub(crate) fn ask(address: SocketAddrV4) -> Outcome {
    connect(address, PATIENCE)
}

/// Where the next connection comes from: never from where another came. What connection tracking remembers of one would
/// lead a later one to the same pod, whatever the rules say by then.
fn next_source() -> SocketAddrV4 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = (count as u16).to_be_bytes();
    let round = (count >> 16) as u16;
    SocketAddrV4::new(Ipv4Addr::new(172, 31, high, low), FIRST_SOURCE_PORT + round)
}

fn new_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::V4(next_source()).into())?;
    // The end is a reset: no connection lingers.
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// Who is at the other end of a connection.
fn answer(mut socket: &Socket) -> io::Result<Ipv4Addr> {
    socket.set_read_timeout(Some(SILENCE))?;
    let mut octets = [0; 4];
    socket.read_exact(&mut octets)?;
    Ok(Ipv4Addr::from(octets))
}

fn connect(address: SocketAddrV4, patience: Duration) -> Outcome {
    let asked = || {
        let socket = new_socket()?;
        socket.connect_timeout(&SocketAddr::V4(address).into(), patience)?;
        answer(&socket)
    };
    match asked() {
        Ok(pod) => Outcome::Answered(pod),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Refused,
        Err(_) => Outcome::Silence,
    }
}

/// Connects again and again until the outcome is as wanted. Returns the moment at which that was known; for silence, the
/// moment at which the connection began that was not heard of.
///
/// # Errors
/// Says what came instead when it is time to give up.
pub(crate) fn watch(
    address: SocketAddrV4,
    wanted: impl Fn(Outcome) -> bool,
    give_up: impl Fn() -> bool,
) -> Result<Instant> {
    loop {
        let began = Instant::now();
        let mut outcome = connect(address, PATIENCE);
        let mut known = Instant::now();
        if outcome == Outcome::Silence && wanted(outcome) {
            outcome = connect(address, SILENCE);
            known = began;
        }
        if wanted(outcome) {
            return Ok(known);
        }
        if give_up() {
            bail!("connections to {address} do not do what they should: {outcome:?}");
        }
        thread::sleep(PAUSE);
    }
}

/// Connects to an address that is silent until one connection is answered, with a new one every [`PAUSE`], as none says
/// when to give it up. Returns the moment at which that was known.
///
/// # Errors
/// When it is time to give up.
pub(crate) fn watch_silence(address: SocketAddrV4, give_up: impl Fn() -> bool) -> Result<Instant> {
    let mut waiting: VecDeque<Socket> = VecDeque::new();
    loop {
        let socket = new_socket()?;
        socket.set_nonblocking(true)?;
        let begun = socket.connect(&SocketAddr::V4(address).into());
        if begun.is_err_and(|error| error.raw_os_error() == Some(Errno::EINPROGRESS as i32)) {
            waiting.push_back(socket);
        }
        if waiting.len() > AT_ONCE {
            waiting.pop_front();
        }
        let mut polled: Vec<PollFd<'_>> =
            waiting.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLOUT)).collect();
        ppoll(&mut polled, Some(PAUSE.into()), None)?;
        let ready = polled.iter().position(|one| one.any() == Some(true));
        if let Some(socket) = ready.and_then(|at| waiting.remove(at)) {
            socket.set_nonblocking(false)?;
            if answer(&socket).is_ok() {
                return Ok(Instant::now());
            }
        }
        if give_up() {
            bail!("connections to {address} do not do what they should: none is answered");
        }
    }
}

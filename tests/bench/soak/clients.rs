//! Live clients, on one thread of the client's namespace.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::cluster::{self, ROLLING, STEADY};
use crate::netns::Namespace;
use crate::pods;
use crate::tally::{Ask, Outcome, Tally};
use crate::truth::Truth;

/// How long an answer is waited for: longer than some retransmissions take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);
/// A datagram is not sent again.
const UDP_PATIENCE: Duration = Duration::from_secs(1);
/// The first retransmission comes after a second.
const LATE: Duration = Duration::from_millis(900);

/// How many clients of each kind there are.
const CONNECTING: usize = 12;
const STICKY: usize = 8;
const ECHOES: usize = 30;
const PUSHES: usize = 30;
const FLOWS: usize = 20;

/// The clients.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Clients {
    /// They have asked for the last time.
    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

/// What each client knows.
struct Desk {
    truth: Arc<Truth>,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
}

/// They ask until [`Clients::end`].
pub(crate) fn begin(client: &Namespace, truth: &Arc<Truth>, tally: &Arc<Tally>) -> Clients {
    let stop = Arc::new(AtomicBool::new(false));
    let desk = Desk { truth: Arc::clone(truth), tally: Arc::clone(tally), stop: Arc::clone(&stop) };
    // A thread stays in the namespace in which it was started.
    let thread = client.run(|| std::thread::spawn(move || run(desk)));
    Clients { stop, thread }
}

fn run(desk: Desk) {
    let tasks = LocalSet::new();
    let desk = Rc::new(desk);
    for number in 0..CONNECTING {
        tasks.spawn_local(Rc::clone(&desk).connect_again_and_again(number));
    }
    for number in 0..STICKY {
        tasks.spawn_local(Rc::clone(&desk).come_back(number));
    }
    for number in 0..ECHOES + PUSHES {
        tasks.spawn_local(Rc::clone(&desk).stay(number, number < ECHOES));
    }
    for number in 0..FLOWS {
        tasks.spawn_local(Rc::clone(&desk).keep_a_flow(number));
    }
    pods::tokio_runtime().block_on(tasks);
}

/// The Services that clients use in turn.
fn service(turn: usize) -> usize {
    let turn = turn % (STEADY.len() + ROLLING.len());
    if turn < STEADY.len() { STEADY.start + turn } else { ROLLING.start + turn - STEADY.len() }
}

/// Where a client comes from: a block of its own for each kind and number.
fn source(kind: u8, number: usize, turn: usize) -> SocketAddr {
    // Never from where another connection of late came: what connection tracking remembers of it would lead it there.
    let address = Ipv4Addr::new(172, 31, kind * 32 + number as u8 % 32, (turn % 250) as u8 + 1);
    SocketAddr::from((address, 10_000 + (turn / 250 % 50_000) as u16))
}

async fn open(service: usize, from: SocketAddr) -> io::Result<(TcpStream, Ipv4Addr)> {
    let connect = async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        let mut stream = socket.connect(SocketAddr::V4(address(service))).await?;
        let mut octets = [0; 4];
        stream.read_exact(&mut octets).await?;
        Ok((stream, Ipv4Addr::from(octets)))
    };
    timeout(PATIENCE, connect).await.unwrap_or_else(|_| Err(io::Error::other("no answer")))
}

fn address(service: usize) -> SocketAddrV4 {
    SocketAddrV4::new(cluster::cluster_ip(service), cluster::PORT)
}

impl Desk {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn judge(&self, service: usize, pod: Ipv4Addr, asked: Instant) -> Outcome {
        match asked.elapsed() {
            _ if !self.truth.allows(service, pod, asked) => Outcome::Wrong,
            took if took > LATE => Outcome::Late,
            _ => Outcome::Right,
        }
    }

    /// Opens one connection after the other.
    async fn connect_again_and_again(self: Rc<Self>, number: usize) {
        let mut turn = number;
        while self.goes_on() {
            turn += 1;
            let (service, asked) = (service(turn * 7 + number), Instant::now());
            match open(service, source(0, number, turn)).await {
                Ok((stream, pod)) => {
                    // The end is a reset: no connection lingers.
                    let _ = stream.set_zero_linger();
                    let what = || format!("service-{service} by {pod}");
                    self.tally.count(Ask::New, asked, self.judge(service, pod, asked), what);
                }
                Err(error) => {
                    let what = || format!("service-{service}: {error}");
                    self.tally.count(Ask::New, asked, Outcome::Missing, what);
                }
            }
            sleep(Duration::from_millis(25)).await;
        }
    }

    /// Opens one connection after the other from one address, to a Service that remembers it.
    async fn come_back(self: Rc<Self>, number: usize) {
        let service = cluster::STICKY;
        let mut first = None;
        let mut turn = 0;
        while self.goes_on() {
            turn += 1;
            let from = SocketAddr::from((Ipv4Addr::new(172, 31, 240, number as u8 + 1), 10_000 + turn % 50_000));
            let asked = Instant::now();
            match open(service, from).await {
                Ok((stream, pod)) => {
                    let _ = stream.set_zero_linger();
                    let expected = *first.get_or_insert(pod);
                    let outcome = if pod == expected { self.judge(service, pod, asked) } else { Outcome::Wrong };
                    self.tally.count(Ask::Sticky, asked, outcome, || format!("by {pod}, not {expected}"));
                    // Where it is now, it has to stay.
                    first = Some(pod);
                }
                Err(error) => {
                    self.tally.count(Ask::Sticky, asked, Outcome::Missing, || error.to_string());
                    // By then it is another fault's turn.
                    first = None;
                }
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    /// Keeps a connection, and hears from it all the time.
    async fn stay(self: Rc<Self>, number: usize, echoes: bool) {
        let ask = if echoes { Ask::Echo } else { Ask::Push };
        let mut turn = 0;
        while self.goes_on() {
            turn += 1;
            let (service, asked) = (service(number), Instant::now());
            let mut stream = match open(service, source(1 + number as u8 / 32, number, turn)).await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    let what = || format!("service-{service} cannot be reached: {error}");
                    self.tally.count(Ask::New, asked, Outcome::Missing, what);
                    sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let mut asked = Instant::now();
            let Err(error) = self.hear(&mut stream, echoes, ask, &mut asked).await else { return };
            let what = || format!("a connection to service-{service}, opened {turn} times: {error}");
            self.tally.count(ask, asked, Outcome::Missing, what);
        }
    }

    /// Until the end.
    async fn hear(&self, stream: &mut TcpStream, echoes: bool, ask: Ask, asked: &mut Instant) -> io::Result<()> {
        stream.write_u8(if echoes { pods::ECHO } else { pods::PUSH }).await?;
        while self.goes_on() {
            *asked = Instant::now();
            if echoes {
                stream.write_u8(b'x').await?;
            }
            let answer = timeout(PATIENCE, stream.read_u8()).await;
            answer.unwrap_or_else(|_| Err(io::Error::other("silence")))?;
            let outcome = if asked.elapsed() > LATE { Outcome::Late } else { Outcome::Right };
            self.tally.count(ask, *asked, outcome, String::new);
            if echoes {
                sleep(pods::PUSH_EVERY).await;
            }
        }
        Ok(())
    }

    /// Asks again and again in one UDP flow.
    async fn keep_a_flow(self: Rc<Self>, number: usize) {
        let service = service(number);
        let socket = UdpSocket::bind(source(5, number, 0)).await.expect("the address is the client's own");
        let mut turn: u32 = 0;
        while self.goes_on() {
            turn += 1;
            let asked = Instant::now();
            let answer = async {
                socket.send_to(&turn.to_be_bytes(), SocketAddr::V4(address(service))).await?;
                let mut bytes = [0; 64];
                loop {
                    // Answers that came late belong to earlier questions.
                    let (length, _) = socket.recv_from(&mut bytes).await?;
                    if length == 8 && bytes[4..8] == turn.to_be_bytes() {
                        return io::Result::Ok(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]));
                    }
                }
            };
            let answer = timeout(UDP_PATIENCE, answer).await.unwrap_or_else(|_| Err(io::Error::other("no answer")));
            let (outcome, what) = match answer {
                Ok(pod) => (self.judge(service, pod, asked), format!("by {pod}")),
                Err(error) => (Outcome::Missing, error.to_string()),
            };
            self.tally.count(Ask::Flow, asked, outcome, || format!("a flow to service-{service}: {what}"));
            sleep(Duration::from_millis(200)).await;
        }
    }
}

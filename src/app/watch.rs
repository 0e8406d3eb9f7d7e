//! `nftproxyd status --watch`: a screen that is drawn again and again.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Stdin, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::netlink::asynchronous;
use crate::nftables::LinuxKernel;
use crate::status::{self, Filter, Order, Seen, View};

/// Another screen than the one with what was typed before, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// What was there before.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// What is waited for.
enum Next {
    Look,
    Draw,
    End,
}

/// Shows what there is until it is told to end: by `q`, Ctrl-C, SIGTERM or SIGHUP, or as nobody reads any more.
pub(super) async fn watch(
    mut kernel: LinuxKernel,
    filter: &Filter,
    metrics: SocketAddr,
    every: Duration,
) -> anyhow::Result<()> {
    let mut inputs = Inputs::new().context("cannot follow the terminal")?;
    let mut seen = Seen::default();
    let mut order = Order::default();
    // From here on whatever happens leaves the terminal as it was.
    let mut screen = Screen::enter().context("cannot use the terminal")?;
    loop {
        let next_look = Instant::now() + every;
        let daemon = status::ask(metrics).await;
        let families = kernel.tables()?;
        let named = if daemon.is_ok() { status::ask_named(metrics, filter).await } else { None };
        let daemon_says = daemon.as_ref().ok();
        let picture = status::look(&mut kernel, &families, filter, daemon_says, named.as_ref(), Some(&mut seen))?;
        let changes = match &daemon {
            Ok(_) => status::ask_history(metrics).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let changes = status::changes_of(changes, filter).unwrap_or_default();
        let head = match &daemon {
            Ok(daemon) => status::daemon_text(daemon),
            Err(error) => format!("daemon    {error}\n"),
        };
        loop {
            let view = View { head: &head, order, changes: &changes, size: screen.size() };
            match screen.draw(&status::frame_text(&picture, &view)) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                drawn => drawn.context("cannot write")?,
            }
            match inputs.next(next_look, &mut order).await {
                Next::Look => break,
                Next::Draw => {}
                Next::End => return Ok(()),
            }
        }
    }
}

/// What can happen meanwhile.
struct Inputs {
    /// Keys; where they are not typed on a terminal there are none.
    keys: Option<AsyncFd<Stdin>>,
    ends: [Signal; 3],
    resized: Signal,
}

impl Inputs {
    fn new() -> io::Result<Inputs> {
        let listen = |kind| signal(kind);
        let ends = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(listen);
        let [interrupt, terminate, hangup] = ends;
        let keys = (io::stdin().is_terminal() && io::stdout().is_terminal()).then(|| asynchronous(io::stdin()));
        Ok(Inputs {
            keys: keys.transpose()?,
            ends: [interrupt?, terminate?, hangup?],
            resized: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self, look: Instant, order: &mut Order) -> Next {
        let Inputs { keys, ends: [interrupt, terminate, hangup], resized } = self;
        loop {
            let key = async {
                match keys {
                    Some(keys) => key(keys).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = interrupt.recv() => return Next::End,
                _ = terminate.recv() => return Next::End,
                _ = hangup.recv() => return Next::End,
                _ = resized.recv() => return Next::Draw,
                () = sleep_until(look) => return Next::Look,
                typed = key => {
                    *order = match typed {
                        Some(b'c') => Order::Connections,
                        Some(b'r') => Order::Rate,
                        Some(b'n') => Order::Name,
                        Some(b'q') => return Next::End,
                        Some(_) => continue,
                        // The terminal is gone.
                        None => return Next::End,
                    };
                    return Next::Draw;
                }
            }
        }
    }
}

/// The next key; `None` where there can be none any more.
async fn key(keys: &AsyncFd<Stdin>) -> Option<u8> {
    loop {
        let mut ready = keys.readable().await.ok()?;
        let mut byte = [0];
        // The terminal is set so that this does not wait.
        match nix::unistd::read(keys.get_ref(), &mut byte) {
            Ok(1..) => return Some(byte[0]),
            Ok(0) => ready.clear_ready(),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(_) => return None,
        }
    }
}

/// What is drawn on. Where it is no terminal, frames follow each other.
struct Screen {
    is_terminal: bool,
    /// How the terminal was, if it is typed on.
    before: Option<Termios>,
}

impl Screen {
    fn enter() -> io::Result<Screen> {
        let mut screen = Screen { is_terminal: io::stdout().is_terminal(), before: None };
        if screen.is_terminal && io::stdin().is_terminal() {
            let before = tcgetattr(io::stdin())?;
            let mut raw = before.clone();
            // Keys come at once and are not shown; Ctrl-C stays what it is.
            raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
            raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
            screen.before = Some(before);
        }
        if screen.is_terminal {
            put(ENTER)?;
        }
        Ok(screen)
    }

    /// Columns and lines.
    fn size(&self) -> Option<(usize, usize)> {
        let (columns, lines) = terminal_size::terminal_size_of(io::stdout()).filter(|_| self.is_terminal)?;
        Some((columns.0.into(), lines.0.into()))
    }

    /// In one write, each line over the old one: nothing is ever blank in between.
    fn draw(&mut self, frame: &str) -> io::Result<()> {
        if !self.is_terminal {
            return put(&format!("{frame}\n\n"));
        }
        let mut text = "\x1b[H".to_owned();
        for (nth, line) in frame.lines().enumerate() {
            let end = if nth == 0 { "" } else { "\r\n" };
            let _ = write!(text, "{end}{line}\x1b[K");
        }
        text.push_str("\x1b[J");
        put(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_terminal {
            // The terminal may be gone.
            let _ = put(LEAVE);
        }
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

//! An HTTP client that shows what is on the wire.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The lines of the head after the first.
    head: Vec<String>,
    /// As many bytes as `Content-Length` says, or what the chunks hold.
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header, whose name is given in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.iter().filter_map(|line| line.split_once(": "));
        lines.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// A connection that stays open from one request to the next.
#[derive(Debug)]
pub(crate) struct Client(Option<TcpStream>);

impl Client {
    /// Connects; that has to succeed.
    pub(crate) async fn connect(address: &str) -> Client {
        let address = address.to_owned();
        let stream =
            blocking(move || TcpStream::connect(&address).unwrap_or_else(|error| panic!("{address}: {error}")));
        let stream = stream.await;
        stream.set_read_timeout(Some(DEADLINE)).expect("settable");
        Client(Some(stream))
    }

    /// Asks, and reads the answer.
    pub(crate) async fn request(&mut self, method: &str, path: &str) -> Answer {
        self.request_with(method, path, "").await
    }

    /// The same with these lines in the head, each with its end.
    pub(crate) async fn request_with(&mut self, method: &str, path: &str, lines: &str) -> Answer {
        let mut stream = self.0.take().expect("one request at a time");
        let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{lines}\r\n");
        let (stream, answer) = blocking(move || {
            stream.write_all(request.as_bytes()).expect("the connection is open");
            let answer = read(&mut stream);
            (stream, answer)
        })
        .await;
        self.0 = Some(stream);
        answer
    }

    /// Waits until the server closes the connection.
    pub(crate) async fn closed(&mut self) {
        let mut stream = self.0.take().expect("one request at a time");
        match blocking(move || stream.read(&mut [0; 1])).await {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("not closed: {other:?}"),
        }
    }
}

/// One request on a connection of its own.
pub(crate) async fn request(address: &str, method: &str, path: &str) -> Answer {
    Client::connect(address).await.request(method, path).await
}

/// Whether nobody listens, or soon nobody does: when another test starts a program, there is a copy of every open socket
/// until that runs.
pub(crate) async fn refused(address: &str) -> bool {
    let address = address.to_owned();
    let attempt = move || {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            match TcpStream::connect(&address) {
                Err(error) => return error.kind() == ErrorKind::ConnectionRefused,
                Ok(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        false
    };
    blocking(attempt).await
}

fn read(stream: &mut TcpStream) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let status = status.expect("a status line");
    let mut answer = Answer { status, head: lines.map(str::to_owned).collect(), body: String::new() };
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = chunks(stream);
        return answer;
    }
    let length = answer.header("content-length").map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    answer.body = String::from_utf8(body).expect("text");
    answer
}

/// A body in chunks (RFC 9112, 7.1), of which the last is empty.
fn chunks(stream: &mut TcpStream) -> String {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a chunk");
            line.extend(byte);
        }
        let digits = String::from_utf8(line).expect("text");
        let length = usize::from_str_radix(digits.trim_end(), 16).expect("a length");
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk).expect("a chunk");
        body.extend(&chunk[..length]);
        if length == 0 {
            return String::from_utf8(body).expect("text");
        }
    }
}

/// Runs what waits on another thread, so that the server can run on this one.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

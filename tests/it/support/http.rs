//! GET requests made on the node.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::world::World;

/// The answer to a GET request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Status(u16),
    /// Nobody listens.
    Refused,
    /// Anything else that went wrong.
    Failed(String),
}

/// Makes a GET request from the node itself.
pub(crate) fn get(world: &World, server: SocketAddr, path: &str) -> Answer {
    let path = path.to_owned();
    match world.run(move || status(server, &path)) {
        Ok(status) => Answer::Status(status),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// The body of the answer to a GET request from the node itself, whatever its status.
pub(crate) fn body(world: &World, server: SocketAddr, path: &str) -> io::Result<String> {
    let path = path.to_owned();
    world.run(move || {
        let mut answer = String::new();
        request(server, &path)?.take(1 << 20).read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("half an answer"))?;
        Ok(body.to_owned())
    })
}

fn request(server: SocketAddr, path: &str) -> io::Result<TcpStream> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // As a whole: a server may answer as soon as it has read the first line, and close.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").as_bytes())?;
    Ok(stream)
}

fn status(server: SocketAddr, path: &str) -> io::Result<u16> {
    let mut line = String::new();
    BufReader::new(request(server, path)?.take(1 << 10)).read_line(&mut line)?;
    line.strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::other(format!("not an HTTP answer: {line:?}")))
}

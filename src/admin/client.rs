//! Asks the desk of a running sidecar; it blocks, and needs no runtime.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::status::Status;

/// How long each step may take. Docker's own limit for a whole health check is 30 s unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(3);
/// Whoever listens there, it shall not fill our memory.
const LONGEST_ANSWER: u64 = 4 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--admin off`.
    #[error("the admin listener is off, so there is nobody to ask")]
    Off,
    /// Nobody answers.
    #[error("no sidecar answers at {admin} (--admin says where it does, within its own container or pod)")]
    Unreachable {
        /// The admin listener.
        admin: SocketAddr,
        /// What happened.
        source: io::Error,
    },
    /// The answer is no, or not an answer.
    #[error("{path} answers {status:?}{}{body}", if .body.is_empty() { "" } else { ": " })]
    Refused {
        /// What was asked for.
        path: &'static str,
        /// The status line.
        status: String,
        /// The first line of the reasons.
        body: String,
    },
    /// The answer is not that of a sidecar that we understand.
    #[error("what answers at {admin} is no sidecar of this version")]
    Unreadable {
        /// The admin listener.
        admin: SocketAddr,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
}

/// The body of the answer to `GET path`, if that is 200.
///
/// # Errors
/// Nobody answers, or not with 200.
pub fn get(admin: SocketAddr, path: &'static str) -> Result<String, Error> {
    let (status, body) = ask(admin, path).map_err(|source| Error::Unreachable { admin, source })?;
    match status.split_whitespace().nth(1) {
        Some("200") => Ok(body),
        _ => Err(Error::Refused { path, status, body: body.lines().next().unwrap_or_default().into() }),
    }
}

/// What `/status` says.
///
/// # Errors
/// Nobody answers, or not as a sidecar does.
pub fn status(admin: SocketAddr) -> Result<Status, Error> {
    serde_json::from_str(&get(admin, "/status")?).map_err(|source| Error::Unreadable { admin, source })
}

/// The status line and the body.
fn ask(admin: SocketAddr, path: &str) -> io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = BufReader::new(stream.take(LONGEST_ANSWER));
    let mut status = String::new();
    answer.read_line(&mut status)?;
    let mut line = String::new();
    while answer.read_line(&mut line)? > 2 {
        line.clear();
    }
    // The desk states a length and closes; what is cut short is no JSON, and no loss otherwise.
    let mut body = Vec::new();
    answer.read_to_end(&mut body)?;
    Ok((status.trim_end().into(), String::from_utf8_lossy(&body).into_owned()))
}

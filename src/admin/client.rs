//! A client of the admin listener, for commands. It blocks, and needs no runtime.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::reload;
use super::status::Status;

/// The time limit for connecting, and for each read and write: well below 30 s, Docker's default
/// limit for a health check.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The largest response that is read, in bytes.
const MAX_ANSWER: u64 = 4 * 1024 * 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no address to connect to: `admin` is `off` in the configuration.
    #[error("the admin listener is off (--admin off), so the sidecar can't be asked")]
    Off,
    /// The connection was refused or broke, or took longer than `TIMEOUT`.
    #[error("no sidecar answers at {admin}; run this in its container or pod, with the same --admin")]
    Unreachable {
        /// The address that was tried.
        admin: SocketAddr,
        /// What failed on the connection.
        source: io::Error,
    },
    /// The status is neither 200 nor, for a reload, 422.
    #[error("{path} answers {status:?}{}{body}", if .body.is_empty() { "" } else { ": " })]
    Refused {
        /// The requested path.
        path: &'static str,
        /// The status line.
        status: String,
        /// The first line of the body.
        body: String,
    },
    /// The response can't be parsed.
    #[error("the program at {admin} is not a loopgate sidecar of this version")]
    Unreadable {
        /// The address that was asked.
        admin: SocketAddr,
        /// Why the body is not the expected JSON.
        source: serde_json::Error,
    },
}

/// Sends `GET path` and returns the body, which is cut if the response exceeds [`MAX_ANSWER`].
///
/// # Errors
/// If the connection fails, or the status is not 200.
pub fn get(admin: SocketAddr, path: &'static str) -> Result<String, Error> {
    let (status, body) = send_request(admin, "GET", path, "").map_err(|source| Error::Unreachable { admin, source })?;
    match status.split_whitespace().nth(1) {
        Some("200") => Ok(body),
        _ => Err(Error::Refused { path, status, body: body.lines().next().unwrap_or_default().into() }),
    }
}

/// Gets and parses `/status`.
///
/// # Errors
/// If the connection fails, the status is not 200, or the response can't be parsed.
pub fn fetch_status(admin: SocketAddr) -> Result<Status, Error> {
    serde_json::from_str(&get(admin, "/status")?).map_err(|source| Error::Unreadable { admin, source })
}

/// Asks the sidecar to reload its configuration. If the sidecar rejects the new configuration, the
/// outcome says so.
///
/// # Errors
/// If the connection fails, the request is refused, or the response can't be parsed.
pub fn request_reload(admin: SocketAddr) -> Result<reload::Outcome, Error> {
    const PATH: &str = "/reload";
    let field = format!("{}: 1\r\nContent-Length: 0\r\n", reload::HEADER);
    let (status, body) =
        send_request(admin, "POST", PATH, &field).map_err(|source| Error::Unreachable { admin, source })?;
    match status.split_whitespace().nth(1) {
        Some("200" | "422") => serde_json::from_str(&body).map_err(|source| Error::Unreadable { admin, source }),
        _ => Err(Error::Refused { path: PATH, status, body: body.lines().next().unwrap_or_default().into() }),
    }
}

/// Sends a request, and returns the status line and the body. `fields` are further header lines,
/// each with its CRLF. A response is cut after [`MAX_ANSWER`] bytes.
fn send_request(admin: SocketAddr, method: &str, path: &str, fields: &str) -> io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(
        format!("{method} {path} HTTP/1.1\r\nHost: {admin}\r\n{fields}Connection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = BufReader::new(stream.take(MAX_ANSWER));
    let mut status = String::new();
    answer.read_line(&mut status)?;
    // The head ends with an empty line, which has two bytes: CR and LF.
    let mut line = String::new();
    while answer.read_line(&mut line)? > 2 {
        line.clear();
    }
    // The body needs no length, since the server closes the connection after it. JSON that was cut
    // off, by the server or by `MAX_ANSWER`, is noticed when the caller parses it.
    let mut body = Vec::new();
    answer.read_to_end(&mut body)?;
    Ok((status.trim_end().into(), String::from_utf8_lossy(&body).into_owned()))
}

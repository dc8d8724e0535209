//! `loopgate healthcheck`: for HEALTHCHECK in an image without a shell.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::flags::{Flags, Selection};
use crate::config::check;
use crate::config::key::Key;

/// Asks the running sidecar whether it is ready; exit status 0 or 1
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags<Admin>,
    /// Ask whether it is alive rather than whether it is ready
    #[arg(long)]
    live: bool,
}

#[derive(Clone, Debug)]
struct Admin;

impl Selection for Admin {
    fn takes(key: &Key) -> bool {
        key.flag == "admin"
    }
}

/// Why the sidecar doesn't count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--admin off`.
    #[error("the admin listener is off, so there is nobody to ask")]
    Off,
    /// Nobody answers.
    #[error("asking {admin}")]
    Unreachable {
        /// The admin listener.
        admin: SocketAddr,
        /// What happened.
        source: std::io::Error,
    },
    /// The answer is no, or not an answer.
    #[error("{path} answers {status:?}{}{body}", if .body.is_empty() { "" } else { ": " })]
    Unhealthy {
        /// What was asked for.
        path: &'static str,
        /// The status line.
        status: String,
        /// The first line of the reasons.
        body: String,
    },
}

/// How long each step may take. Docker's own limit for a whole check is 30 s unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks once.
pub fn run(args: Args) -> Result<(), super::Error> {
    // Whatever else may be wrong with a file that was edited since, the running sidecar has not read it.
    let admin = check::admin(&args.flags.merge())?;
    let admin = admin.ok_or(Error::Off)?;
    let path = if args.live { "/healthz" } else { "/readyz" };
    let (status, body) = ask(admin, path).map_err(|source| Error::Unreachable { admin, source })?;
    match status.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(Error::Unhealthy { path, status, body }.into()),
    }
}

/// The status line, and the first line of the body.
fn ask(admin: SocketAddr, path: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").as_bytes())?;
    // Whoever listens there, it shall not fill our memory.
    let mut answer = BufReader::new(stream.take(64 * 1024));
    let mut status = String::new();
    answer.read_line(&mut status)?;
    let body = answer.lines().map_while(Result::ok).skip_while(|line| !line.is_empty()).find(|line| !line.is_empty());
    Ok((status.trim_end().into(), body.unwrap_or_default()))
}

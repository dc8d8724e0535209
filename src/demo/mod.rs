//! `loopgate demo`: a gateway, the sidecar before it and a client on each lane, in one process and without Docker.
//!
//! The gateway is a stand-in that shows what it is told about each client, and says what the newest OpenClaw would make of it. The
//! sidecar is the real one; only its state directory is a temporary one.

mod check;
mod client;
mod gateway;
mod judge;
mod page;
mod table;
mod told;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{self, Sidecar};
use crate::config::{Config, Engine, ListenAddresses, ListenOn};
use crate::fingerprint::Fingerprint;
use crate::shutdown::Shutdown;

/// The loopback address whose clients the demonstration takes for agents.
const AGENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// Where the self-check's external client comes from.
const OUTSIDER: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// How long clients may hold up the end. Chromium takes two seconds over a WebSocket that the other side closes.
const DRAIN: Duration = Duration::from_secs(3);

/// What to demonstrate.
#[derive(Clone, Debug)]
pub struct Options {
    /// End after the self-check.
    pub once: bool,
    /// Where the sidecar listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Whether what is printed may have colours.
    pub colours: bool,
}

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{doing}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The sidecar could not start.
    #[error(transparent)]
    Sidecar(#[from] app::Error),
    /// The self-check could not begin.
    #[error("the self-check could not begin")]
    Check(#[from] client::Error),
    /// The self-check found a lane that is not what it must be.
    #[error("{failed} of {all} checks did not hold")]
    NotHeld {
        /// How many did not hold.
        failed: usize,
        /// How many there were.
        all: usize,
    },
    /// A signal came before the self-check had ended.
    #[error("told to end before the self-check had")]
    Interrupted,
}

impl Error {
    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// Runs the demonstration on a runtime of its own, and writes to `out` what it finds.
///
/// # Errors
/// It could not start, or the self-check did not hold.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::io("starting the runtime"))?;
    runtime.block_on(demonstrate(options, &mut Printer(out)))
}

async fn demonstrate(options: &Options, out: &mut Printer<'_, impl Write>) -> Result<(), Error> {
    let mut end = End::new().map_err(Error::io("listening for signals"))?;
    let state = tempfile::Builder::new().prefix("loopgate-demo-").tempdir().map_err(Error::io("making a temporary directory"))?;
    let shutdown = Shutdown::new();
    let defaults = Config::default();
    let gateway = gateway::start(defaults.gateway.external_source, &shutdown).await.map_err(Error::io("opening the gateway"))?;
    let config = config(defaults, options.listen, gateway, state.path());
    let sidecar = Sidecar::start(config.clone()).await?;
    let report = tokio::select! {
        report = check(&config, &sidecar, &shutdown) => Some(report?),
        () = end.asked() => None,
    };
    let result = match report {
        Some((door, report)) => {
            out.say(&table::render(&report, &config, options.colours));
            if !options.once {
                out.say(&table::invitation(&invitation(options, &config, &sidecar, door), options.colours));
                end.asked().await;
            }
            report.verdict()
        }
        None if options.once => Err(Error::Interrupted),
        None => Ok(()),
    };
    tokio::select! {
        () = sidecar.stop() => {}
        () = end.asked() => {}
    }
    shutdown.begin();
    shutdown.finished(DRAIN).await;
    result
}

/// Checks every lane; returns the door that it came through, too.
async fn check(config: &Config, sidecar: &Sidecar, shutdown: &Shutdown) -> Result<(SocketAddr, check::Report), Error> {
    let door = sidecar.listening().into_iter().find_map(within_reach).ok_or(client::Error::NoDoor)?;
    let client = client::Client::new(door, sidecar.identity().ca.as_ref(), shutdown.clone())?;
    Ok((door, check::run(&client, config).await))
}

/// What somebody needs to know to go on by hand; `near` is the door that clients on loopback reach.
fn invitation(options: &Options, config: &Config, sidecar: &Sidecar, near: SocketAddr) -> table::Invitation {
    let asked_for = sidecar.listening().into_iter().find(|door| door.ip() == options.listen.ip()).unwrap_or(near);
    let identity = sidecar.identity();
    table::Invitation {
        listening: asked_for,
        url: format!("https://{}/", if asked_for.ip().is_unspecified() { near } else { asked_for }),
        near,
        ca: config.state_dir.join("ca.pem"),
        fingerprint: identity.certified_key.cert.first().map(|leaf| Fingerprint::of(leaf).to_string()).unwrap_or_default(),
    }
}

/// The defaults, less what needs a machine of its own.
fn config(defaults: Config, listen: SocketAddr, gateway: SocketAddr, state_dir: &Path) -> Config {
    let mut config = Config { state_dir: state_dir.to_owned(), admin: None, ..defaults };
    config.gateway.address = gateway;
    config.docker.engine = Engine::Off;
    config.agents.cidrs = vec![IpNet::V4(Ipv4Net::from(AGENT))];
    config.limits.drain_timeout = DRAIN;
    let door = |address: SocketAddr| ListenOn { addresses: ListenAddresses::Address(address.ip()), port: address.port() };
    config.listen.on = vec![door(listen)];
    if within_reach(listen).is_none() {
        config.listen.on.push(door((Ipv4Addr::LOCALHOST, 0).into()));
    }
    config.tls.names = vec![Ipv4Addr::LOCALHOST.to_string()];
    if !listen.ip().is_unspecified() && listen.ip() != IpAddr::V4(Ipv4Addr::LOCALHOST) {
        config.tls.names.push(listen.ip().to_string());
    }
    config
}

/// Where the self-check's clients, which have IPv4 loopback addresses, can connect to `door`, if they can.
fn within_reach(door: SocketAddr) -> Option<SocketAddr> {
    match door.ip() {
        ip if ip.is_unspecified() => Some((Ipv4Addr::LOCALHOST, door.port()).into()),
        IpAddr::V4(_) => Some(door),
        IpAddr::V6(_) => None,
    }
}

/// Writes for a reader who may have gone: what nobody reads is no failure.
struct Printer<'a, W>(&'a mut W);

impl<W: Write> Printer<'_, W> {
    fn say(&mut self, text: &str) {
        let _ = self.0.write_all(text.as_bytes()).and_then(|()| self.0.flush());
    }
}

/// The signals that end the demonstration; a terminal that is closed counts, so that the temporary directory goes.
struct End {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl End {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_that_ipv4_cannot_reach_gets_another_beside_it() {
        for (listen, doors) in [("127.0.0.1:0", 1), ("0.0.0.0:0", 1), ("[::]:0", 1), ("[::1]:0", 2), ("10.0.0.5:0", 1)] {
            let listen: SocketAddr = listen.parse().unwrap();
            let config = config(Config::default(), listen, "127.0.0.1:1".parse().unwrap(), Path::new("/nowhere"));
            assert_eq!(config.listen.on.len(), doors, "{listen}");
        }
    }
}

//! `loopgate demo`: a gateway, the sidecar in front of it and a client on each lane, in one process
//! and without Docker.
//!
//! The gateway is a stand-in that shows each request as it received it, and how the newest OpenClaw
//! would classify the client. The sidecar is the real one, with a temporary state directory.

mod classify;
mod client;
mod error;
mod gateway;
mod page;
mod received;
mod table;
mod trials;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::Sidecar;
use crate::config::{Config, Engine, ListenAddresses, ListenOn};
use crate::fingerprint::Fingerprint;
use crate::shutdown::Shutdown;
pub use error::Error;
use trials::{AGENT, Report};

/// The drain timeout. Chromium takes two seconds to close a WebSocket after the other side has
/// closed it.
const DRAIN: Duration = Duration::from_secs(3);

/// Options of the demonstration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether to exit after the self-check.
    pub once: bool,
    /// The address that the sidecar listens on. With port 0 the kernel chooses the port.
    pub listen: SocketAddr,
    /// Whether to print colours.
    pub colours: bool,
}

/// Runs the demonstration and writes the results to `out`. Blocks.
///
/// # Errors
/// If it could not start, if a check failed, or with `once` if a signal came first.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::io("starting the runtime"))?;
    runtime.block_on(run_async(options, &mut Printer(out)))
}

/// Starts the gateway and the sidecar, runs the trials, prints the report and, unless
/// `options.once`, waits for a signal.
async fn run_async(options: &Options, out: &mut Printer<'_, impl Write>) -> Result<(), Error> {
    let mut signals = TerminationSignals::install().map_err(Error::io("listening for signals"))?;
    let state = tempfile::Builder::new()
        .prefix("loopgate-demo-")
        .tempdir()
        .map_err(Error::io("making a temporary directory"))?;
    let shutdown = Shutdown::new();
    let defaults = Config::default();
    let gateway =
        gateway::start(defaults.gateway.external_source, &shutdown).await.map_err(Error::io("opening the gateway"))?;
    let config = demo_config(defaults, options.listen, gateway, state.path());
    let sidecar = Sidecar::start(config.clone()).await?;
    let report = tokio::select! {
        report = run_trials(&config, &sidecar, &shutdown) => Some(report?),
        () = signals.wait_for_termination() => None,
    };
    let outcome = match report {
        Some((address, report)) => {
            out.print(&table::render(&report, &config, options.colours));
            if !options.once {
                out.print(&table::render_instructions(
                    &collect_instructions(options, &config, &sidecar, address),
                    options.colours,
                ));
                signals.wait_for_termination().await;
            }
            report.check_all_passed()
        }
        None if options.once => Err(Error::Interrupted),
        None => Ok(()),
    };
    tokio::select! {
        () = sidecar.stop() => {}
        () = signals.wait_for_termination() => {}
    }
    shutdown.begin();
    shutdown.wait_for_tasks(DRAIN).await;
    outcome
}

/// Runs the trials. Returns the address that the clients connected to, and the results.
async fn run_trials(config: &Config, sidecar: &Sidecar, shutdown: &Shutdown) -> Result<(SocketAddr, Report), Error> {
    let address = sidecar.tls_addresses().into_iter().find_map(reachable_address).ok_or(client::Error::NotListening)?;
    let client = client::TrialClient::new(address, sidecar.identity().ca.as_ref(), shutdown.clone())?;
    Ok((address, trials::run(&client, config).await))
}

/// Returns the data for trying the sidecar by hand. `near` is the address that clients on loopback
/// can reach.
fn collect_instructions(
    options: &Options,
    config: &Config,
    sidecar: &Sidecar,
    near: SocketAddr,
) -> table::Instructions {
    let asked_for =
        sidecar.tls_addresses().into_iter().find(|address| address.ip() == options.listen.ip()).unwrap_or(near);
    let identity = sidecar.identity();
    table::Instructions {
        listening: asked_for,
        url: format!("https://{}/", if asked_for.ip().is_unspecified() { near } else { asked_for }),
        near,
        ca: config.state_dir.join("ca.pem"),
        fingerprint: identity
            .certified_key
            .cert
            .first()
            .map(|leaf| Fingerprint::of(leaf).to_string())
            .unwrap_or_default(),
    }
}

/// Returns the demonstration's configuration: the defaults, without the features that need Docker
/// or root.
fn demo_config(defaults: Config, listen: SocketAddr, gateway: SocketAddr, state_dir: &Path) -> Config {
    let mut config = Config { state_dir: state_dir.to_owned(), admin: None, ..defaults };
    config.gateway.address = gateway;
    config.docker.engine = Engine::Off;
    config.agents.cidrs = vec![IpNet::V4(Ipv4Net::from(AGENT))];
    config.limits.drain_timeout = DRAIN;
    let address =
        |address: SocketAddr| ListenOn { addresses: ListenAddresses::Address(address.ip()), port: address.port() };
    config.listen.on = vec![address(listen)];
    if reachable_address(listen).is_none() {
        config.listen.on.push(address((Ipv4Addr::LOCALHOST, 0).into()));
    }
    config.tls.names = vec![Ipv4Addr::LOCALHOST.to_string()];
    if !listen.ip().is_unspecified() && listen.ip() != IpAddr::V4(Ipv4Addr::LOCALHOST) {
        config.tls.names.push(listen.ip().to_string());
    }
    config
}

/// Returns the address at which the self-check's clients reach a listener on `address`. It is an
/// IPv4 loopback address, because the clients have such addresses. `None` if they can't reach the
/// listener.
fn reachable_address(address: SocketAddr) -> Option<SocketAddr> {
    match address.ip() {
        ip if ip.is_unspecified() => Some((Ipv4Addr::LOCALHOST, address.port()).into()),
        IpAddr::V4(_) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// Writes to an output whose reader may have closed it. Errors are ignored.
struct Printer<'a, W>(&'a mut W);

impl<W: Write> Printer<'_, W> {
    fn print(&mut self, text: &str) {
        let _ = self.0.write_all(text.as_bytes()).and_then(|()| self.0.flush());
    }
}

/// The signals that end the demonstration. SIGHUP is one, so that closing the terminal removes the
/// temporary directory.
struct TerminationSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl TerminationSignals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn wait_for_termination(&mut self) {
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
    fn an_address_that_ipv4_clients_cannot_reach_gets_a_second_listener() {
        for (listen, listener_count) in
            [("127.0.0.1:0", 1), ("0.0.0.0:0", 1), ("[::]:0", 1), ("[::1]:0", 2), ("10.0.0.5:0", 1)]
        {
            let listen: SocketAddr = listen.parse().unwrap();
            let config = demo_config(Config::default(), listen, "127.0.0.1:1".parse().unwrap(), Path::new("/nowhere"));
            assert_eq!(config.listen.on.len(), listener_count, "{listen}");
        }
    }
}

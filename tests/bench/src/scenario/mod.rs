//! The scenarios: what is measured, and how.

mod attack;
mod fleet;
mod flow;
mod h2;
mod http;
mod idle;
pub mod scale;
mod stall;
mod start;
mod websocket;

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::peer::{Peer, Surroundings};
use attack::Attack;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// 64 keep-alive clients that each send one small GET at a time.
    H1,
    /// The same with one client.
    H1Lat,
    /// h2load: 8 connections with 16 streams each, small GETs.
    H2,
    /// 16 clients that each open a connection with a full handshake, send a small GET, and close
    /// it.
    HsFull,
    /// The same with a ticket.
    HsResumed,
    /// 256 WebSockets that each echo 256 bytes at a time.
    Ws,
    /// The same with one WebSocket.
    WsLat,
    /// 4 WebSockets that each echo 1 MiB at a time; bytes in both directions count.
    WsBulk,
    /// 4 clients, GETs of 16 MiB.
    Down,
    /// 4 clients, POSTs of 16 MiB.
    Up,
    /// 100 streams of server-sent events, with an event every 10 ms.
    Sse,
    /// Thousands of WebSockets: opened, idle, an echo of 64 KiB on each, idle again, then an echo
    /// of 256 bytes on each.
    Idle,
    /// 100 clients that request 64 MiB and read nothing.
    Stall,
    /// Five starts, each followed by a second without traffic.
    Start,
    /// The cost of requests, connections and idle connections with more connections, workers,
    /// agents and path rules, with an access log and with scrapes of the metrics, each compared
    /// with its base.
    Scale,
    /// 1,000 pods in one namespace, then in 100 namespaces with a sidecar for each; 50 are replaced
    /// each second.
    Fleet,
    /// Hostile certificate chains: one after the other for the CPU time of each, then 330
    /// handshakes a second from 101 addresses.
    AttackChains,
    /// 25 HTTP/2 connections that each request 100 files of 3.5 MB and read nothing.
    AttackUnread,
    /// 25 HTTP/2 connections with 90 slow uploads each, and 15 with 90 slow downloads each.
    AttackSlow,
    /// 60 HTTP/2 connections that upload while the backend is down for 5 s.
    AttackUploads,
    /// Thousands of idle connections, and 1,000 new ones a second.
    AttackConnections,
}

/// The result of one measurement: names with their units, and values. Lower is better, except for
/// rates per second.
#[derive(Debug, Default)]
pub struct Sample {
    /// The measures.
    pub measures: Vec<(Cow<'static, str>, f64)>,
    /// Connections and requests that failed.
    pub failed: u64,
}

impl Sample {
    /// Creates a sample of `measures`, and the number of connections and requests that failed.
    pub fn new(measures: Vec<(&'static str, f64)>, failed: u64) -> Self {
        let mut sample = Self { measures: Vec::new(), failed };
        sample.add(measures);
        sample
    }

    /// Adds `measures`.
    pub fn add<N: Into<Cow<'static, str>>>(&mut self, measures: impl IntoIterator<Item = (N, f64)>) {
        self.measures.extend(measures.into_iter().map(|(name, value)| (name.into(), value)));
    }
}

/// The length and size of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The length of a window.
    pub time: Duration,
    /// The number of idle WebSockets.
    pub idle: usize,
    /// The number of the round, from 0.
    pub round: usize,
}

impl Scenario {
    /// The attacks.
    pub const ATTACKS: [Self; 5] =
        [Self::AttackChains, Self::AttackUnread, Self::AttackSlow, Self::AttackUploads, Self::AttackConnections];

    /// Returns the scenario's name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }

    /// Returns whether `peer` can be measured in this scenario.
    pub fn suits(self, peer: Peer) -> bool {
        match self {
            Self::H2 | Self::AttackUnread | Self::AttackSlow | Self::AttackUploads | Self::AttackConnections => {
                peer.has_h2()
            }
            Self::AttackChains => peer.is_loopgate() || matches!(peer, Peer::Nginx | Peer::Haproxy),
            Self::HsResumed | Self::Idle | Self::Stall | Self::Start => peer != Peer::Direct,
            // Other sides follow no pods, and have no options like these.
            Self::Scale | Self::Fleet => peer.is_loopgate(),
            _ => true,
        }
    }

    /// Starts `peer` for this scenario, and measures it.
    ///
    /// # Errors
    /// The side could not be started or measured.
    pub async fn measure(self, peer: Peer, around: &Surroundings, extent: Extent) -> io::Result<Sample> {
        let config = around.certificate.client();
        if self == Self::Start {
            return start::measure(peer, around, &config).await;
        }
        if self == Self::Fleet {
            return fleet::measure(peer, around, &config, extent.time).await;
        }
        if self == Self::Scale {
            return scale::measure(peer, around, &config, extent).await;
        }
        let attack = match self {
            Self::AttackChains => Some(Attack::Chains),
            Self::AttackUnread => Some(Attack::Unread),
            Self::AttackSlow => Some(Attack::Slow),
            Self::AttackUploads => Some(Attack::Uploads),
            Self::AttackConnections => Some(Attack::Connections(extent.idle)),
            _ => None,
        };
        if let Some(attack) = attack {
            return attack.measure(peer, around, &config, extent.time).await;
        }
        let running = around.start(peer, &config).await?;
        let Extent { time, idle, .. } = extent;
        let mut sample = match self {
            Self::H1 => http::requests(&running, time, 64).await,
            Self::H1Lat => http::requests(&running, time, 1).await,
            Self::H2 => h2::requests(&running, time).await?,
            Self::HsFull => http::handshakes(&running, time, 16, false).await,
            Self::HsResumed => http::handshakes(&running, time, 16, true).await,
            Self::Ws => websocket::echoes(&running, time, 256).await,
            Self::WsLat => websocket::echoes(&running, time, 1).await,
            Self::WsBulk => websocket::bulk(&running, time, 4).await,
            Self::Down => flow::download(&running, time, 4).await,
            Self::Up => flow::upload(&running, time, 4).await,
            Self::Sse => flow::events(&running, time, 100).await,
            Self::Idle => idle::measure(&running, time, idle).await?,
            Self::Stall => stall::measure(&running, 100).await?,
            _ => unreachable!("measured above"),
        };
        if peer == Peer::Direct {
            // There is no proxy process whose CPU time could be read.
            sample.measures.retain(|(name, _)| !name.starts_with("CPU"));
        }
        Ok(sample)
    }
}

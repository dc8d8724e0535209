//! The phases of a connection before its first request ("Phases of a connection" in
//! `docs/architecture.md`).
//!
//! Each phase is a type with private fields. Its only constructor takes the type of the phase
//! before it, so that code that skips a check does not compile. After these phases, `request`
//! serves the requests, and `tunnel` carries the bytes after an upgrade.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tracing::{debug, info};

use crate::addr::PeerAddr;
use crate::audit;
use crate::discovery::View;
use crate::labels::Protocol;
use crate::lane::{
    Certificate, ConnectionEvidence, Denied, Evidence, ExternalLane, Lane, ProxyHeader, RequestRules,
    check_peer_allowed, check_plain_peer_allowed, check_proxied_client_allowed, decide_lane, decide_plain_lane,
    issued_certificate_may_count,
};
use crate::listener::{ConnectionPermit, ListenerKind, proxy_protocol};
use crate::metrics::traffic::GaugeGuard;
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::downstream::activity::Activity;
use crate::proxy::downstream::head_tracker::HeadTracker;
use crate::proxy::downstream::io::{ConnectionCapacity, ConnectionResources, Downstream};
use crate::proxy::downstream::transport::Transport;
use crate::proxy::registry::{RegistryGuard, unix_seconds};
use crate::proxy::shared::{ConnectionSettings, Shared};
use crate::tls;
use crate::workers::WorkerSlot;

/// Why a connection was closed before it was served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("denied: {}", .0.label())]
    Denied(Denied),
    #[error("invalid PROXY header")]
    ProxyProtocol(#[from] proxy_protocol::Error),
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("the client CAs or the revoked certificates changed during the handshake")]
    AuthorityChanged,
    #[error("loopgate is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Error {
    /// Returns the reason in one word if loopgate refused the connection; `None` if the connection
    /// failed or loopgate shuts down.
    pub fn refusal_reason(&self) -> Option<&'static str> {
        match self {
            Self::Denied(denied) => Some(denied.label()),
            Self::ProxyProtocol(_) => Some("proxy_protocol"),
            Self::Tls(error) => Some(error.label()),
            Self::AuthorityChanged => Some("authority_changed"),
            Self::ShuttingDown | Self::Io(_) => None,
        }
    }
}

/// A connection after its phases.
pub enum Established {
    /// A connection with a lane, on which HTTP begins.
    Http(Box<Registered>),
    /// A connection of an agent that asks for a certificate: it negotiated [`tls::ENROLMENT_ALPN`].
    Enrolment(EnrolmentConnection),
}

/// A connection that is used to enrol. It counts against the limits of connections until
/// `capacity` is dropped.
pub struct EnrolmentConnection {
    pub stream: tls::Stream<TcpStream>,
    pub capacity: ConnectionCapacity,
}

/// Takes a connection through all phases.
///
/// # Errors
/// The reason why the connection must be closed.
pub async fn establish_connection(shared: &Arc<Shared>, accepted: AcceptedConnection) -> Result<Established, Error> {
    let assigned = match accepted {
        AcceptedConnection::Tls(accepted) => {
            let allowed = accepted.try_allow(shared)?;
            let identified = unless_shutting_down(shared, allowed.read_proxy_header(shared)).await?;
            let handshaken = unless_shutting_down(shared, identified.perform_handshake(shared)).await?;
            if handshaken.wants_enrolment() {
                return Ok(Established::Enrolment(handshaken.into_enrolment()));
            }
            handshaken.assign_lane(shared)?
        }
        AcceptedConnection::Plain(accepted) => accepted.try_allow(shared)?.assign_external_lane(shared)?,
    };
    Ok(Established::Http(Box::new(assigned.register(shared)?)))
}

/// Waits for the end of `phase`.
///
/// # Errors
/// The phase failed, or loopgate began to shut down before its end.
async fn unless_shutting_down<T>(shared: &Shared, phase: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::select! {
        () = shared.shutdown.wait_until_begun() => Err(Error::ShuttingDown),
        result = phase => result,
    }
}

/// The values of a connection that are the same in every phase.
struct ConnectionOrigin {
    peer: PeerAddr,
    local: SocketAddr,
    kind: ListenerKind,
    capacity: ConnectionCapacity,
}

/// Phase 1: accepted by a listener, and moved to its worker.
pub enum AcceptedConnection {
    /// Accepted by a listener for TLS.
    Tls(AcceptedTls),
    /// Accepted by a listener for plain HTTP.
    Plain(AcceptedPlain),
}

/// An accepted connection on which TLS begins.
pub struct AcceptedTls {
    stream: std::net::TcpStream,
    origin: ConnectionOrigin,
}

/// An accepted connection on which plain HTTP begins. Its later phases lead to the external lane
/// only.
pub struct AcceptedPlain {
    stream: std::net::TcpStream,
    origin: ConnectionOrigin,
}

impl AcceptedConnection {
    /// Creates the first phase of a connection. `addresses` are the remote and the local one.
    /// `permit` and `slot` are held until the connection ends.
    pub fn new(
        stream: std::net::TcpStream,
        addresses: (PeerAddr, SocketAddr),
        kind: ListenerKind,
        permit: ConnectionPermit,
        slot: WorkerSlot,
    ) -> Self {
        let (peer, local) = addresses;
        let origin = ConnectionOrigin { peer, local, kind, capacity: ConnectionCapacity::new(permit, slot) };
        match kind {
            ListenerKind::Tls | ListenerKind::PortForward(_) => Self::Tls(AcceptedTls { stream, origin }),
            ListenerKind::Plain => Self::Plain(AcceptedPlain { stream, origin }),
        }
    }

    pub fn peer(&self) -> PeerAddr {
        match self {
            Self::Tls(AcceptedTls { origin, .. }) | Self::Plain(AcceptedPlain { origin, .. }) => origin.peer,
        }
    }
}

impl AcceptedTls {
    /// Checks the peer against the allow and deny lists, unless they do not apply to it.
    ///
    /// # Errors
    /// The lists do not permit the peer, or the socket can't be registered with this thread's
    /// runtime.
    fn try_allow(self, shared: &Shared) -> Result<Allowed, Error> {
        let Self { stream, origin } = self;
        let stream = TcpStream::from_std(stream)?;
        check_peer_allowed(origin.peer.ip(), &shared.view.borrow(), shared.rules.load().policy())
            .map_err(Error::Denied)?;
        Ok(Allowed { stream, origin, settings: shared.settings.load_full() })
    }
}

impl AcceptedPlain {
    /// Allows a trusted proxy only. No PROXY header is read. A proxy that sends one forwards the
    /// bytes of its clients unchanged, so its clients would speak plain HTTP.
    ///
    /// # Errors
    /// The peer is not a trusted proxy, or the socket can't be registered with this thread's
    /// runtime.
    fn try_allow(self, shared: &Shared) -> Result<AllowedProxy, Error> {
        let Self { stream, origin } = self;
        let stream = TcpStream::from_std(stream)?;
        check_plain_peer_allowed(origin.peer.ip(), shared.rules.load().policy()).map_err(Error::Denied)?;
        Ok(AllowedProxy { stream, origin, settings: shared.settings.load_full() })
    }
}

/// Phase 2: the allow and deny lists permit the peer, or do not apply to it.
struct Allowed {
    stream: TcpStream,
    origin: ConnectionOrigin,
    settings: Arc<ConnectionSettings>,
}

impl Allowed {
    /// Reads the PROXY header, if the peer is a trusted proxy and `listen.proxy_protocol` is on,
    /// and checks the client that it names against the allow and deny lists.
    ///
    /// # Errors
    /// The header is missing, invalid or late, or the lists do not permit the client.
    async fn read_proxy_header(self, shared: &Shared) -> Result<Identified, Error> {
        let Self { mut stream, origin, settings } = self;
        let peer = origin.peer.ip();
        let mut proxy_header = ProxyHeader::Local;
        if settings.proxy_protocol && shared.rules.load().policy().is_trusted_proxy(peer) {
            proxy_header = proxy_protocol::read(&mut stream, settings.limits.handshake_timeout).await?;
        }
        check_proxied_client_allowed(peer, proxy_header, shared.rules.load().policy()).map_err(Error::Denied)?;
        Ok(Identified { stream, origin, settings, proxy_header })
    }
}

/// Phase 3: the client's address is known, and the lists permit it.
struct Identified {
    stream: TcpStream,
    origin: ConnectionOrigin,
    settings: Arc<ConnectionSettings>,
    proxy_header: ProxyHeader,
}

impl Identified {
    /// Performs the TLS handshake, and counts it if it succeeds. Asks for a client certificate
    /// where it can matter.
    ///
    /// # Errors
    /// The handshake failed, or did not end within `limits.handshake_timeout`.
    async fn perform_handshake(self, shared: &Shared) -> Result<Handshaken, Error> {
        let Self { stream, origin, settings, proxy_header } = self;
        let tls_config = shared.tls.load_full();
        let peer = origin.peer.ip();
        let may_have_certificate =
            issued_certificate_may_count(peer, proxy_header, &shared.view.borrow(), shared.rules.load().policy());
        let tls::Handshake { stream, certificate } =
            tls::accept(stream, &tls_config, may_have_certificate, settings.limits.handshake_timeout).await?;
        shared.traffic.handshakes.inc();
        Ok(Handshaken { stream, origin, settings, proxy_header, certificate, tls_config })
    }
}

/// Phase 4: the TLS handshake is complete.
struct Handshaken {
    stream: tls::Stream<TcpStream>,
    origin: ConnectionOrigin,
    settings: Arc<ConnectionSettings>,
    proxy_header: ProxyHeader,
    certificate: Option<Certificate>,
    tls_config: Arc<tls::TlsServerConfig>,
}

impl Handshaken {
    fn alpn(&self) -> Option<&[u8]> {
        self.stream.get_ref().1.alpn_protocol()
    }

    fn wants_enrolment(&self) -> bool {
        self.alpn() == Some(tls::ENROLMENT_ALPN)
    }

    /// Returns the connection for its enrolment, which needs no lane.
    fn into_enrolment(self) -> EnrolmentConnection {
        EnrolmentConnection { stream: self.stream, capacity: self.origin.capacity }
    }

    /// Assigns the lane by the evidence of a TLS connection. The connection expires with its
    /// certificate only if the lane depends on the certificate.
    fn assign_lane(self, shared: &Shared) -> Result<Assigned, Error> {
        let protocol = Protocol::of_alpn(self.alpn());
        let Self { stream, origin, settings, proxy_header, certificate, tls_config } = self;
        let tls_config = certificate.is_some().then_some(tls_config);
        let evidence = Evidence { peer: origin.peer.ip(), proxy_header, certificate };
        let (view, rules) = (Arc::clone(&shared.view.borrow()), shared.rules.load_full());
        let lane =
            decide_lane(&evidence, &view, rules.policy(), unix_seconds(SystemTime::now())).map_err(Error::Denied)?;
        let expires = evidence.certificate.as_ref().filter(|_| lane.depends_on_certificate()).map(|certificate| {
            let not_after = u64::try_from(certificate.not_after).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(not_after)
        });
        Ok(Assigned {
            stream: Transport::Tls(stream),
            origin,
            settings,
            evidence: ConnectionEvidence::Tls(evidence),
            protocol,
            expires,
            lane: Arc::new(lane),
            decided_by: DecidedBy { view, rules, tls_config },
        })
    }
}

/// Phases 2 to 4 of a connection over plain HTTP. Its peer is a trusted proxy. There is no PROXY
/// header, no handshake and no certificate.
struct AllowedProxy {
    stream: TcpStream,
    origin: ConnectionOrigin,
    settings: Arc<ConnectionSettings>,
}

impl AllowedProxy {
    /// Decides the lane of a connection over plain HTTP, which can only be external.
    fn assign_external_lane(self, shared: &Shared) -> Result<Assigned, Error> {
        let Self { stream, origin, settings } = self;
        let peer = origin.peer.ip();
        let (view, rules) = (Arc::clone(&shared.view.borrow()), shared.rules.load_full());
        let lane: ExternalLane = decide_plain_lane(peer, &view, rules.policy()).map_err(Error::Denied)?;
        Ok(Assigned {
            stream: Transport::Plain(stream),
            origin,
            settings,
            evidence: ConnectionEvidence::Plain(peer),
            protocol: Protocol::H1,
            expires: None,
            lane: Arc::new(Lane::External(lane)),
            decided_by: DecidedBy { view, rules, tls_config: None },
        })
    }
}

/// The values that a lane was decided by.
struct DecidedBy {
    view: Arc<View>,
    rules: Arc<RequestRules>,
    /// The TLS settings that accepted the client's certificate; `None` if it sent none.
    tls_config: Option<Arc<tls::TlsServerConfig>>,
}

/// Phase 5: the connection has a lane.
struct Assigned {
    stream: Transport,
    origin: ConnectionOrigin,
    settings: Arc<ConnectionSettings>,
    evidence: ConnectionEvidence,
    protocol: Protocol,
    /// The time at which the certificate expires that the lane or the user depends on; `None` if
    /// there is none.
    expires: Option<SystemTime>,
    lane: Arc<Lane>,
    decided_by: DecidedBy,
}

impl Assigned {
    /// Registers the connection, and then applies what changed since the decision: a change before
    /// the registration did not reach this connection.
    ///
    /// # Errors
    /// The TLS settings changed, so that the client's certificate might not be accepted any more.
    fn register(self, shared: &Arc<Shared>) -> Result<Registered, Error> {
        let Self { stream, origin, settings, evidence, protocol, expires, lane, decided_by } = self;
        let guard = shared.registry.register(
            origin.peer,
            Arc::clone(&lane),
            protocol,
            evidence,
            shared.shutdown.cancellation_token(),
        );
        let DecidedBy { view, rules, tls_config } = decided_by;
        let rules_changed = !Arc::ptr_eq(&rules, &shared.rules.load());
        if rules_changed || !Arc::ptr_eq(&view, &shared.view.borrow()) {
            shared.recheck_lanes_and_caps();
        }
        if rules_changed {
            shared.revoke_denied_clients();
        }
        if tls_config.is_some_and(|config| !config.accepts_same_certificates(&shared.tls.load())) {
            return Err(Error::AuthorityChanged);
        }
        Ok(Registered { shared: Arc::clone(shared), stream, origin, settings, protocol, expires, lane, guard })
    }
}

/// Phase 6: the connection is registered, so that later changes reach it.
pub struct Registered {
    shared: Arc<Shared>,
    stream: Transport,
    origin: ConnectionOrigin,
    settings: Arc<ConnectionSettings>,
    protocol: Protocol,
    expires: Option<SystemTime>,
    lane: Arc<Lane>,
    guard: RegistryGuard,
}

impl Registered {
    /// Logs the connection, also to the audit log, and counts it as open; returns the context of
    /// its requests, and its stream.
    pub fn into_open_connection(self) -> (Arc<ConnectionContext>, Downstream) {
        let Self { shared, stream, origin, settings, protocol, expires, lane, guard } = self;
        let ConnectionOrigin { peer, local, kind, capacity } = origin;
        let target = shared.target_of(kind);
        debug!(
            connection = guard.number(), %peer, lane = lane.kind().label(), protocol = protocol.label(),
            "connected"
        );
        let (basis, agent) = lane.basis_and_agent_name();
        let number = guard.number();
        info!(
            target: audit::TARGET, kind = "lane", connection = number, %peer, lane = lane.kind().label(),
            admitted = basis, agent,
            "lane assigned"
        );
        let counters = shared.traffic.lane(lane.kind());
        counters.connections.inc();
        let open = GaugeGuard::new(&counters.connections_open);
        let (number, close_signal, activity) = (guard.number(), guard.close_signal().clone(), Activity::new(protocol));
        let head_tracker = HeadTracker::new(protocol);
        let resources = ConnectionResources::new(capacity, guard, open);
        let io = Downstream::new(
            stream,
            protocol,
            Arc::clone(&activity),
            Arc::clone(&head_tracker),
            &shared.traffic,
            resources,
        );
        let budgets = shared.upstream.budgets();
        let budget = match &*lane {
            Lane::Agent(agent) => budgets.for_agent(agent.source),
            Lane::External(external) => budgets.for_client(external.client),
        };
        let closed_by = OnceLock::new();
        let context = ConnectionContext {
            shared,
            settings,
            lane,
            target,
            peer,
            local,
            protocol,
            number,
            expires,
            budget,
            activity,
            head_tracker,
            close_signal,
            closed_by,
            refused_upgrade: Mutex::default(),
        };
        (Arc::new(context), io)
    }
}

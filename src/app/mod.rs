//! The only place where wires cross: it builds the sidecar out of the other rooms, binds first and then runs.

mod descriptors;
mod handshakes;
mod token;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::admin::{self, Desk};
use crate::config::live::adopt;
use crate::config::{self, Config, ListenOn};
use crate::discovery::kubernetes::Api;
use crate::discovery::{self, Namespace, View};
use crate::enrolment::{DockerProofs, Enrolment};
use crate::error_chain::error_chain;
use crate::listener;
use crate::metrics::health::Health;
use crate::metrics::traffic::Traffic;
use crate::metrics::{self, Doors};
use crate::openclaw::files::{self, Unreadable};
use crate::openclaw::keep_paired::KeepPaired;
#[cfg(feature = "otel")]
use crate::otel::{self, Exporter};
use crate::pki::{self, Identity, Pki, SubjectName};
use crate::proxy::{Enrol, Proxy};
use crate::shutdown::Shutdown;
use crate::tls;
use crate::trace::Recorder;
use crate::workers::{self, Workers};
use handshakes::Handshakes;

/// How long the first look at Docker may keep the doors closed.
const DOCKER_PATIENCE: Duration = Duration::from_secs(2);

/// Why the sidecar could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something that nothing works without.
    #[error("{doing}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// There is no certificate to serve.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The certificate can't be served, or the operator's client CA can't be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// A door can't be opened.
    #[error(transparent)]
    Listener(#[from] listener::Error),
    /// The admin listener can't be opened.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The gateway's token can't be read.
    #[error(transparent)]
    Token(#[from] token::Error),
    /// Spans can't be sent.
    #[cfg(feature = "otel")]
    #[error(transparent)]
    Otel(#[from] otel::Error),
    /// The network namespace is nobody's any more, and its owner has another one now.
    #[error("the owner of this network namespace has started anew; exiting, to be started in its new one")]
    Orphaned,
}

impl Error {
    /// The exit status that says what to do about it.
    pub fn status(&self) -> u8 {
        if matches!(self, Self::Orphaned) { discovery::EXIT_ORPHANED } else { 1 }
    }
}

/// Runs the sidecar until it is told to stop: this thread keeps house, and hands traffic to [`Workers`].
///
/// At each SIGHUP it goes by what `load` returns, and `set_log` is told what to log.
///
/// # Errors
/// It could not start, or has to be started anew in another network namespace.
pub fn run(config: Config, load: impl Fn() -> Result<Config, config::Error>, set_log: impl Fn(&config::Log)) -> Result<(), Error> {
    let doing = |doing| move |source| Error::Io { doing, source };
    descriptors::make_room(config.limits.max_connections);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing("starting the runtime"))?;
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(doing("listening for signals"))?;
        let sidecar = Sidecar::start(config).await?;
        let ended = tokio::select! {
            () = signals.end(|| sidecar.reload(load(), &set_log)) => Ok(()),
            () = sidecar.orphaned() => Err(Error::Orphaned),
        };
        // In a namespace without interfaces nobody can be said goodbye to, and its owner might stop again meanwhile.
        if ended.is_ok() {
            tokio::select! {
                () = sidecar.stop() => {}
                () = signals.end_again() => warn!("told to stop a second time: not waiting any longer"),
            }
        }
        ended
    })
}

/// A running sidecar.
pub struct Sidecar {
    /// What is gone by.
    config: Arc<ArcSwap<Config>>,
    proxy: Arc<Proxy>,
    handshakes: Arc<Handshakes>,
    limits: Arc<listener::Limits>,
    /// Why the configuration is not that of the file.
    config_problem: watch::Sender<Option<String>>,
    pki: Pki,
    view: watch::Receiver<Arc<View>>,
    bound: watch::Receiver<Arc<Vec<SocketAddr>>>,
    shutdown: Shutdown,
    _workers: Workers,
    #[cfg(feature = "otel")]
    exporter: Option<Arc<Exporter>>,
    /// The admin listener ends last, so that it can say that the rest is ending.
    desk: Shutdown,
}

impl Sidecar {
    /// Opens every door and starts to serve. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Something that `config` names can't be had.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let started = SystemTime::now();
        let shutdown = Shutdown::new();
        let desk = Shutdown::new();
        let admin = config.admin.map(admin::bind).transpose()?;
        let docker = metrics::Discovery::default();
        let mut view = discovery::start(&config, &docker, &shutdown);
        let token = token::inherited(&config)?;
        for Unreadable { key, path, error } in files::unreadable(&config.gateway) {
            warn!(key, path = %path.display(), error, "a configured gateway file can't be read yet");
        }
        // No door opens, and no certificate is made, before it is known who is an agent and by what names we are reached, or that this
        // can't be known for now.
        discovery::settled(&mut view, DOCKER_PATIENCE).await;
        let pki = pki::open(&config.tls, &config.state_dir, follow_names(&config, view.clone(), &shutdown), &shutdown)?;
        let newest = pki.identity();
        let served = Arc::clone(&newest.borrow());
        let terms = handshakes::terms(&served, &config)?;
        #[cfg(feature = "otel")]
        let exporter = config.log.otel_endpoint.as_ref().map(Exporter::new).transpose()?.map(Arc::new);
        #[cfg(feature = "otel")]
        let recorder = exporter.clone().map(|exporter| exporter as Arc<dyn Recorder>);
        #[cfg(not(feature = "otel"))]
        let recorder: Option<Arc<dyn Recorder>> = None;
        let (traffic, doors) = (Arc::new(Traffic::told_to(recorder)), Doors::default());
        let enrolment = Arc::new(enrolment(&config, &pki, view.clone(), &shutdown));
        let enrolments = enrolment.metrics().clone();
        let enrol: Enrol = Box::new(move |stream, peer| {
            let enrolment = Arc::clone(&enrolment);
            Box::pin(async move { enrolment.serve(stream, peer).await })
        });
        let workers = Workers::start(workers::count()).map_err(|source| Error::Io { doing: "starting the workers", source })?;
        let crew = workers.crew().clone();
        let proxy = Proxy::new(&config, view.clone(), terms, token, enrol, Arc::clone(&traffic), crew, &shutdown);
        let serving = Arc::clone(&proxy);
        let knowing = Arc::clone(&proxy);
        let limits = Arc::new(listener::Limits::new(&config, doors.clone(), move |peer| knowing.may_be_agents(peer)));
        let bound = listener::follow(&config, view.clone(), &shutdown, &limits, move |accepted| serving.serve(accepted))?;
        keep_paired(&config, &shutdown);
        let gateway = config.gateway.address;
        let config = Arc::new(ArcSwap::from_pointee(config));
        let handshakes = Arc::new(Handshakes::new(newest, served, Arc::clone(&config), Arc::clone(&proxy)));
        shutdown.spawn(Arc::clone(&handshakes).follow(shutdown.clone()));
        let (config_problem, known) = watch::channel(None);
        if let Some(admin) = admin {
            let mut registry = Registry::with_prefix("loopgate");
            traffic.register(&mut registry);
            doors.register(&mut registry);
            docker.register(&mut registry, &[config.load().discovery]);
            enrolments.register(&mut registry);
            let health = Health::default();
            health.register(&mut registry);
            let desk_ = Desk {
                gateway,
                gateway_lost: AtomicBool::new(false),
                listen: config.load().listen.on.clone(),
                bound: bound.clone(),
                served: handshakes.served(),
                serving_problem: handshakes.problem(),
                pki_problem: pki.problem(),
                view: view.clone(),
                proxy: Arc::clone(&proxy),
                registry,
                health,
                config_problem: known,
                started,
                shutdown: shutdown.clone(),
            };
            admin.serve(desk_, &desk);
        }
        let sidecar = Self {
            config,
            proxy,
            handshakes,
            limits,
            config_problem,
            pki,
            view,
            bound,
            shutdown,
            _workers: workers,
            #[cfg(feature = "otel")]
            exporter,
            desk,
        };
        sidecar.introduce();
        Ok(sidecar)
    }

    fn introduce(&self) {
        let fingerprint = self.identity().certified_key.cert.first().map(|leaf| pki::fingerprint(leaf)).unwrap_or_default();
        let listening: Vec<_> = self.bound.borrow().iter().map(ToString::to_string).collect();
        let (version, gateway) = (env!("CARGO_PKG_VERSION"), self.config.load().gateway.address);
        info!(version, %gateway, listening = listening.join(","), fingerprint, "loopgate is running");
    }

    /// The addresses that clients can connect to now.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.bound.borrow().to_vec()
    }

    /// What is gone by now.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// What is shown to clients now.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.handshakes.served().borrow())
    }

    /// Resolves when this network namespace has no future: its owner has another one.
    async fn orphaned(&self) {
        let mut view = self.view.clone();
        let left = view.wait_for(|view| view.namespace == Namespace::Left).await.is_ok();
        if !left {
            std::future::pending::<()>().await;
        }
    }

    /// Looks again at files that may have changed, and goes by `wanted` as far as that can be while running (SIGHUP). Where `wanted` is
    /// wrong, everything stays as it was. Connections stay open unless they lose their rights.
    pub fn reload(&self, wanted: Result<Config, config::Error>, set_log: impl Fn(&config::Log)) {
        info!("looking at the configuration and the certificate's files again");
        self.pki.reload();
        let adopted = wanted.map_err(|error| error_chain(&error)).and_then(|wanted| {
            let (config, kept) = adopt(&self.config.load(), wanted);
            handshakes::terms(&self.pki.identity().borrow().clone(), &config).map_err(|error| error_chain(&error))?;
            Ok((config, kept))
        });
        self.config_problem.send_replace(adopted.as_ref().err().map(|error| error.replace('\n', "; ")));
        match adopted {
            Ok((config, kept)) => self.go_by(config, &kept, set_log),
            Err(error) => error!("keeping the configuration as it was: {}", error.replace('\n', "; ")),
        }
    }

    fn go_by(&self, config: Config, kept: &[&str], set_log: impl Fn(&config::Log)) {
        set_log(&config.log);
        if !kept.is_empty() {
            warn!(keys = kept.join(", "), "changed, but only a restart makes it count");
        }
        let config = Arc::new(config);
        self.config.store(Arc::clone(&config));
        self.handshakes.renew();
        self.limits.renew(&config);
        self.proxy.renew(&config);
        match token::inherited(&config) {
            Ok(token) => self.proxy.renew_token(token),
            Err(error) => error!("agents go on inheriting the token as it was: {}", error_chain(&error)),
        }
        info!("going by the configuration as it is now");
    }

    /// Says whether [`Sidecar::stop`] has been called.
    pub fn is_stopping(&self) -> bool {
        self.shutdown.has_begun()
    }

    /// Stops: no new connection, requests end, WebSockets are told goodbye; what is left after `limits.drain_timeout` is cut.
    pub async fn stop(&self) {
        info!("stopping");
        self.shutdown.begin();
        let left = self.shutdown.finished(self.config.load().limits.drain_timeout).await;
        if left > 0 {
            warn!(left, "cut what had not ended in time");
        }
        #[cfg(feature = "otel")]
        if let Some(exporter) = self.exporter.clone() {
            exporter.stop().await;
        }
        self.desk.begin();
        info!("stopped");
    }
}

/// Keeps the gateway's own device paired, where its state directory is mounted.
fn keep_paired(config: &Config, shutdown: &Shutdown) {
    let Some(state_dir) = config.gateway.state_dir.clone() else { return };
    let (gateway, token_file) = (config.gateway.address, config.gateway.token_file.clone());
    let ending = shutdown.clone();
    shutdown.spawn(async move {
        tokio::select! {
            () = ending.begun() => {}
            () = KeepPaired { gateway, state_dir, token_file }.run() => {}
        }
    });
}

/// Enrolment with what there is for it: without Docker or a CA it refuses everybody, and says so.
fn enrolment(config: &Config, pki: &Pki, view: watch::Receiver<Arc<View>>, shutdown: &Shutdown) -> Enrolment {
    let docker = discovery::engine::Engine::new(&config.docker.engine, shutdown).and_then(|engine| engine.client().ok());
    match config.discovery {
        config::Discovery::Docker => Enrolment::new(config, view, pki.authority(), docker.map(DockerProofs::new)),
        config::Discovery::Kubernetes => Enrolment::new(config, view, pki.authority(), None).with_tokens(Api::new(&config.kubernetes)),
    }
}

/// The names that the server's certificate needs, out of what discovery sees.
fn follow_names(config: &Config, mut view: watch::Receiver<Arc<View>>, shutdown: &Shutdown) -> watch::Receiver<BTreeSet<SubjectName>> {
    // An address that the operator named is one that clients are told, be it on loopback.
    let named: Vec<IpAddr> = config.listen.on.iter().filter_map(ListenOn::exact).filter(|ip| !ip.is_unspecified()).collect();
    let names = move |view: &View| -> BTreeSet<SubjectName> {
        let dns = view.own_names.iter().cloned().map(SubjectName::Dns);
        // Nobody writes a link-local address into a URL, and each new one would cost clients that pin the leaf their pin.
        let addresses = view.own_addresses().filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        dns.chain(addresses.chain(named.iter().copied()).map(SubjectName::Ip)).collect()
    };
    let (publish, receiver) = watch::channel(names(&view.borrow_and_update()));
    let ending = shutdown.clone();
    shutdown.spawn(async move {
        loop {
            tokio::select! {
                () = ending.begun() => return,
                changed = view.changed() => if changed.is_err() { return },
            }
            let now = names(&view.borrow_and_update());
            publish.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
    });
    receiver
}

/// What the process is told.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, hup: signal(SignalKind::hangup())? })
    }

    /// Calls `reload` at each SIGHUP; returns when told to end.
    async fn end(&mut self, reload: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => reload(),
            }
        }
    }

    async fn end_again(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

//! The address of the engine: the configured one, that of `DOCKER_HOST`, or one of the usual paths
//! of engines' sockets.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tracing::{info, warn};

use crate::config;
use crate::config::parse;

/// The socket of a rootful Docker Engine.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// The variable by which the `docker` command finds its engine.
const DOCKER_HOST: &str = "DOCKER_HOST";

/// The engine's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    location: Location,
    /// Whether the address is from `DOCKER_HOST`.
    is_from_docker_host: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    /// The first of the usual sockets that exists.
    Usual(Arc<UsualSockets>),
    Unix(PathBuf),
    Tcp(String),
    /// A value of `DOCKER_HOST`, and the reason why it can't be used.
    Unusable(String, &'static str),
}

/// The usual paths of engines' sockets.
///
/// The first path that exists is used. After the first connection the choice is final, so that a
/// socket that appears later can't replace the chosen one.
#[derive(Debug, PartialEq, Eq)]
struct UsualSockets {
    /// The paths, in the order of preference.
    paths: Vec<PathBuf>,
    /// The socket to which the first connection was made.
    chosen: OnceLock<PathBuf>,
    /// The socket with a higher preference that appeared after the choice and was reported.
    ignored_socket: OnceLock<PathBuf>,
}

impl UsualSockets {
    fn new(paths: Vec<PathBuf>) -> Arc<Self> {
        Arc::new(Self { paths, chosen: OnceLock::new(), ignored_socket: OnceLock::new() })
    }

    /// Returns the chosen socket, else the first that exists, else the path of Docker Engine's.
    fn socket(&self) -> &Path {
        let existing = || self.paths.iter().find(|path| path.exists());
        self.chosen.get().or_else(existing).map_or(Path::new(DOCKER_SOCKET), PathBuf::as_path)
    }

    /// Chooses `connected` if no socket is chosen yet. Returns whether `connected` is the chosen
    /// socket.
    fn try_choose(&self, connected: &Path) -> bool {
        let chosen = self.chosen.get_or_init(|| {
            info!(socket = %connected.display(), "found the engine's socket; using it until loopgate is restarted");
            connected.to_owned()
        });
        chosen == connected
    }

    /// Warns once if a socket with a higher preference than the chosen one exists.
    fn warn_of_better_socket(&self) {
        let Some(chosen) = self.chosen.get() else { return };
        let file_id = |path: &Path| path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let used = file_id(chosen);
        let mut better = self.paths.iter().take_while(|path| *path != chosen);
        let Some(other) = better.find(|path| file_id(path).is_some_and(|found| Some(found) != used)) else { return };
        self.ignored_socket.get_or_init(|| {
            warn!(
                socket = %chosen.display(),
                other = %other.display(),
                "another engine's socket has appeared and is ignored: name it by --docker to use it"
            );
            other.clone()
        });
    }
}

impl Address {
    /// Returns the address for the configured `engine` and the environment variables; `None` if
    /// Docker is off.
    pub(super) fn from_config(engine: &config::Engine, variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let configured = |location| Some(Self { location, is_from_docker_host: false });
        match engine {
            config::Engine::Off => None,
            config::Engine::Unix(path) => configured(Location::Unix(path.clone())),
            config::Engine::Tcp(address) => configured(Location::Tcp(address.clone())),
            config::Engine::Auto => match variable_text(&variable, DOCKER_HOST) {
                Some(host) => Some(Self {
                    location: parse_docker_host(host, variable_text(&variable, "DOCKER_TLS_VERIFY").is_some()),
                    is_from_docker_host: true,
                }),
                None => configured(Location::Usual(UsualSockets::new(usual_sockets(variable)))),
            },
        }
    }

    #[cfg(test)]
    pub(super) fn unix(path: &str) -> Self {
        Self { location: Location::Unix(path.into()), is_from_docker_host: false }
    }

    #[cfg(test)]
    pub(super) fn one_of(paths: &[&Path]) -> Self {
        let paths = paths.iter().map(|path| path.to_path_buf()).collect();
        Self { location: Location::Usual(UsualSockets::new(paths)), is_from_docker_host: false }
    }

    #[cfg(test)]
    pub(super) fn tcp(address: &str) -> Self {
        Self { location: Location::Tcp(address.into()), is_from_docker_host: false }
    }

    /// Returns the path of the engine's socket; `None` if the engine is not reached through a Unix
    /// socket.
    pub(super) fn socket(&self) -> Option<&Path> {
        match &self.location {
            Location::Usual(usual) => Some(usual.socket()),
            Location::Unix(path) => Some(path),
            Location::Tcp(_) | Location::Unusable(..) => None,
        }
    }

    /// Records a connection to `socket`. Returns false if another of the usual sockets was chosen
    /// before, so that the connection must not be used.
    pub(super) fn try_choose_socket(&self, socket: &Path) -> bool {
        if let Location::Usual(usual) = &self.location { usual.try_choose(socket) } else { true }
    }

    /// Warns once if one of the usual sockets exists that would have been preferred to the chosen
    /// one.
    pub(super) fn warn_of_better_socket(&self) {
        if let Location::Usual(usual) = &self.location {
            usual.warn_of_better_socket();
        }
    }

    /// Returns `host:port` if the engine is reached over TCP.
    pub(super) fn tcp_address(&self) -> Option<&str> {
        if let Location::Tcp(address) = &self.location { Some(address) } else { None }
    }

    /// Returns why this address can't be used; `None` if it can.
    pub(super) fn why_unusable(&self) -> Option<&'static str> {
        if let Location::Unusable(_, why) = &self.location { Some(why) } else { None }
    }

    /// Returns the URL for log lines, followed by ` (DOCKER_HOST)` if it is from that variable.
    pub(super) fn name(&self) -> String {
        let url = match (&self.location, self.socket()) {
            (Location::Tcp(address), _) => format!("tcp://{address}"),
            (Location::Unusable(text, _), _) => text.clone(),
            (_, Some(path)) => format!("unix://{}", path.display()),
            (_, None) => String::new(),
        };
        if self.is_from_docker_host { format!("{url} ({DOCKER_HOST})") } else { url }
    }

    /// Returns whether the address is only a guess: it is not configured, and there was no
    /// connection to a usual socket yet. Then there may be no engine at all.
    pub(super) fn is_guessed(&self) -> bool {
        matches!(&self.location, Location::Usual(usual) if usual.chosen.get().is_none())
    }

    /// Returns the value of `DOCKER_HOST` if the configured engine is another.
    pub(super) fn unused_docker_host(&self, variable: impl Fn(&str) -> Option<OsString>) -> Option<String> {
        let host = variable_text(variable, DOCKER_HOST).filter(|_| !self.is_from_docker_host)?;
        (parse_docker_host(host.clone(), false) != self.location).then_some(host)
    }
}

/// Returns the value of the environment variable `name`; `None` if it is unset or empty.
fn variable_text(variable: impl Fn(&str) -> Option<OsString>, name: &str) -> Option<String> {
    variable(name).map(|value| value.to_string_lossy().into_owned()).filter(|value| !value.is_empty())
}

/// Parses the value of `DOCKER_HOST`. `tls` is whether `DOCKER_TLS_VERIFY` is set.
fn parse_docker_host(host: String, tls: bool) -> Location {
    match parse::engine(&host) {
        Ok(config::Engine::Unix(path)) => Location::Unix(path),
        Ok(config::Engine::Tcp(_)) if tls => Location::Unusable(
            host,
            "DOCKER_TLS_VERIFY asks for TLS, which loopgate does not speak with an engine: name a socket or a filter \
             by --docker",
        ),
        Ok(config::Engine::Tcp(address)) => Location::Tcp(address),
        _ => Location::Unusable(host, "loopgate uses unix:///PATH and tcp://HOST:PORT only: name one by --docker"),
    }
}

/// Returns the usual paths of the sockets of Docker Engine, rootless Docker, Docker Desktop,
/// Colima, OrbStack and Podman.
fn usual_sockets(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let runtime = variable_text(&variable, "XDG_RUNTIME_DIR")
        .map_or_else(|| format!("/run/user/{}", nix::unistd::geteuid()), Into::into);
    let home = variable_text(&variable, "HOME").filter(|home| home.starts_with('/'));
    let mut paths = vec![PathBuf::from(DOCKER_SOCKET), Path::new(&runtime).join("docker.sock")];
    let in_home = [
        ".docker/run/docker.sock",
        ".docker/desktop/docker.sock",
        ".colima/default/docker.sock",
        ".orbstack/run/docker.sock",
    ];
    paths.extend(home.iter().flat_map(|home| in_home.iter().map(|path| Path::new(home).join(path))));
    paths.extend(["/run/podman/podman.sock".into(), Path::new(&runtime).join("podman/podman.sock")]);
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Engine;

    fn address_from(engine: &Engine, variables: &[(&str, &str)]) -> Option<Address> {
        Address::from_config(engine, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_variable_counts_only_where_no_engine_is_configured() {
        // Each row has the configured engine, DOCKER_HOST, DOCKER_TLS_VERIFY and the expected
        // address. `usual` stands for any of the usual sockets, since the machine decides which of
        // them exists.
        let table = [
            (Engine::Auto, "unix:///run/user/1000/docker.sock", "", "unix:///run/user/1000/docker.sock (DOCKER_HOST)"),
            (Engine::Auto, "tcp://filter:2375", "", "tcp://filter:2375 (DOCKER_HOST)"),
            (Engine::Auto, "tcp://h:2376", "1", "tcp://h:2376 (DOCKER_HOST): DOCKER_TLS_VERIFY asks for TLS"),
            (
                Engine::Auto,
                "ssh://me@h",
                "",
                "ssh://me@h (DOCKER_HOST): loopgate uses unix:///PATH and tcp://HOST:PORT only",
            ),
            (Engine::Auto, "", "", "usual"),
            (Engine::Auto, "", "1", "usual"),
            (Engine::Unix("/s".into()), "tcp://h:1", "", "unix:///s"),
            (Engine::Tcp("f:1".into()), "tcp://h:1", "1", "tcp://f:1"),
        ];
        for (engine, host, verify, expected) in table {
            let address = address_from(&engine, &[("DOCKER_HOST", host), ("DOCKER_TLS_VERIFY", verify)]).unwrap();
            let why = address.why_unusable().map(|why| format!(": {why}")).unwrap_or_default();
            let name = if address.is_guessed() { "usual".into() } else { address.name() };
            assert!(format!("{name}{why}").starts_with(expected), "{engine:?} {host} {verify}: {name}{why}");
        }
        assert_eq!(address_from(&Engine::Off, &[("DOCKER_HOST", "unix:///s")]), None);
    }

    #[test]
    fn a_variable_that_names_another_engine_is_known() {
        for (engine, host, expected) in [
            (Engine::Unix("/s".into()), "unix:///s", None),
            (Engine::Unix("/s".into()), "", None),
            (Engine::Unix("/s".into()), "unix:///other", Some("unix:///other")),
            (Engine::Unix("/s".into()), "ssh://h", Some("ssh://h")),
            (Engine::Auto, "unix:///other", None),
        ] {
            let variables = [("DOCKER_HOST", host)];
            let variable =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            assert_eq!(
                Address::from_config(&engine, variable).unwrap().unused_docker_host(variable).as_deref(),
                expected,
                "{engine:?} {host}"
            );
        }
    }

    #[test]
    fn the_first_usual_socket_that_exists_is_used() {
        let home = tempfile::tempdir().unwrap();
        let (runtime, colima) = (home.path().join("run"), home.path().join(".colima/default/docker.sock"));
        let variables = [("HOME", home.path().to_str().unwrap()), ("XDG_RUNTIME_DIR", runtime.to_str().unwrap())];
        let mut address = address_from(&Engine::Auto, &variables).unwrap();
        let Location::Usual(usual) = &mut address.location else { panic!("{address:?}") };
        let paths = &mut Arc::get_mut(usual).unwrap().paths;
        assert_eq!(paths[0], Path::new(DOCKER_SOCKET));
        paths.retain(|path| path.starts_with(home.path()));
        assert_eq!(paths.len(), 6);
        assert_eq!(
            address.socket(),
            Some(Path::new(DOCKER_SOCKET)),
            "if no usual socket exists, the path is Docker Engine's"
        );
        for path in [colima, runtime.join("docker.sock")] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            assert_eq!(address.socket(), Some(path.as_path()));
        }
    }

    #[tokio::test]
    async fn a_socket_that_appears_later_does_not_take_the_place_of_the_first() {
        use crate::discovery::docker::engine::Engine;
        use crate::shutdown::Shutdown;
        use loopgate_test_support::fake_docker::FakeDocker;
        let home = tempfile::tempdir().unwrap();
        let (mut first, other) = (FakeDocker::start(), FakeDocker::start());
        let (better, socket) = (home.path().join("better.sock"), first.socket());
        let engine = Engine::at(Address::one_of(&[&better, &socket]), &Shutdown::new());
        assert!(engine.is_guessed());
        engine.list_containers().await.unwrap();
        std::os::unix::fs::symlink(other.socket(), &better).unwrap();
        // Clones share the choice: discovery and enrolment have a clone each.
        for engine in [engine.clone(), engine] {
            assert!(!engine.is_guessed());
            engine.list_containers().await.unwrap();
            engine.warn_of_better_socket();
            let Location::Usual(usual) = &engine.address().location else { panic!() };
            assert_eq!(usual.ignored_socket.get(), Some(&better));
        }
        assert_eq!((first.request_count("/containers/json"), other.request_count("/containers/json")), (3, 0));
        // The other socket is still not used after the first engine has ended and its socket is
        // gone.
        first.stop_engine(true).await;
        let engine = Engine::at(Address::one_of(&[&better, &socket]), &Shutdown::new());
        assert!(engine.address().try_choose_socket(&socket));
        assert!(
            matches!(engine.list_containers().await, Err(crate::discovery::docker::Error::NoSocket { path }) if path == socket)
        );
        assert_eq!(other.request_count("/containers/json"), 0);
        // A connection to another socket that was being opened at the same time is not used.
        assert!(!engine.address().try_choose_socket(&better));
    }
}

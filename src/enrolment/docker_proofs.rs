//! Reads proofs through the Docker Engine API: `GET /containers/json`, `GET /containers/{id}/top`,
//! `HEAD /containers/{id}/archive`.

use std::path::Path;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::proof_reader::{Entry, FileStat, ProofEnvironment, ProofReader, ReadError};
use crate::discovery::docker::engine::Engine;
use crate::discovery::docker::error::Error;
use crate::discovery::docker::object::{ContainerSummary, PathStat};
use crate::enrolment_protocol::ProofKind;

/// The directory bit of Go's `os.FileMode`, the encoding in which the engine states the type of a
/// file.
const MODE_DIR: u32 = 1 << 31;
/// All bits of Go's `os.ModeType`. A regular file has none of them.
const MODE_TYPE: u32 = MODE_DIR | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19;

/// A [`ProofReader`] that reads through the Docker Engine API.
#[derive(Clone, Debug)]
pub struct DockerProofs {
    engine: Engine,
}

impl DockerProofs {
    /// Returns a reader that reads proofs through `engine`.
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

impl ProofReader for DockerProofs {
    async fn read_environment(&self, id: &str, kind: ProofKind) -> Result<Option<ProofEnvironment>, ReadError> {
        let (listed, unreadable) = self.engine.list_containers().await.map_err(read_error("/containers/json"))?;
        let is_agent = |container: &&ContainerSummary| container.id.as_deref() == Some(id);
        let Some(container) =
            listed.iter().find(is_agent).filter(|container| container.state.as_deref() == Some("running"))
        else {
            return Ok(None);
        };
        let mounts = container
            .mounts
            .iter()
            .flatten()
            .filter_map(|mount| mount.destination.as_deref().map(Into::into))
            .collect();
        // A container whose entry can't be parsed may have joined the PID namespace.
        let shares_processes = kind == ProofKind::Process
            && self.is_podman().await?
            && (!unreadable.is_empty() || self.shares_pid_namespace(id, &listed).await?);
        Ok(Some(ProofEnvironment { mounts, shares_processes }))
    }

    async fn read_command_lines(&self, id: &str) -> Result<Vec<String>, ReadError> {
        let top = self.engine.list_processes(id).await.map_err(read_error("/containers/{id}/top"))?;
        let titles = top.titles.unwrap_or_default();
        let column = titles.iter().position(|title| matches!(title.as_str(), "CMD" | "COMMAND" | "ARGS"));
        let line = |process: Vec<String>| process.get(column?).cloned();
        Ok(top.processes.unwrap_or_default().into_iter().filter_map(line).collect())
    }

    async fn stat(&self, id: &str, path: &Path) -> Result<Option<Entry>, ReadError> {
        let stat = self
            .engine
            .path_stat(id, path.to_str().unwrap_or_default())
            .await
            .map_err(read_error("/containers/{id}/archive"))?;
        Ok(stat.as_ref().map(to_entry))
    }
}

impl DockerProofs {
    /// Returns whether the engine is Podman.
    ///
    /// # Errors
    /// The request fails, or the status is not 200: then a socket filter answered, and the engine's
    /// kind is unknown.
    async fn is_podman(&self) -> Result<bool, ReadError> {
        let answer = self.engine.probe("/_ping", "/_ping").await.map_err(read_error("/_ping"))?;
        if answer.status != 200 {
            let message =
                "the response would show whether the engine is Podman, which decides the proofs that count".to_owned();
            let refused =
                Error::Refused { engine: self.engine.name(), endpoint: "/_ping", status: answer.status, message };
            return Err(read_error("/_ping")(refused));
        }
        Ok(answer.is_podman)
    }

    /// Returns whether the container `id` shares its PID namespace with the host or one of
    /// `listed`.
    ///
    /// This matters for Podman, which lists the processes of a container's PID namespace. Docker
    /// lists those of its control group.
    async fn shares_pid_namespace(&self, id: &str, listed: &[ContainerSummary]) -> Result<bool, ReadError> {
        for other in listed.iter().filter_map(|container| container.id.as_deref()) {
            let inspected = self.engine.inspect_container(other).await;
            if matches!(&inspected, Err(Error::NotFound { .. })) && other != id {
                continue;
            }
            let host_config = inspected.map_err(read_error("/containers/{id}/json"))?.host_config.unwrap_or_default();
            let mode = host_config.pid_mode.unwrap_or_default();
            let shares =
                if other == id { !matches!(mode.as_str(), "" | "private") } else { joins_pid_namespace(&mode, id) };
            if shares {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Returns whether a container with the PID mode `mode` may have joined the PID namespace of the
/// container `id`. A mode that names a container, but not by its full id, may mean any container.
fn joins_pid_namespace(mode: &str, id: &str) -> bool {
    let is_id = |name: &str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    mode.strip_prefix("container:").is_some_and(|name| name == id || !is_id(name))
}

fn read_error(endpoint: &'static str) -> impl Fn(Error) -> ReadError {
    move |error| ReadError { endpoint, source: error.into() }
}

/// Converts the engine's metadata of a file.
fn to_entry(stat: &PathStat) -> Entry {
    match stat.mode & MODE_TYPE {
        0 => Entry::File(FileStat {
            size: stat.size,
            mode: unix_permissions(stat.mode),
            mtime: parse_mtime(&stat.mtime),
        }),
        MODE_DIR => Entry::Directory,
        _ => Entry::Other,
    }
}

/// Converts the permission bits of Go's `os.FileMode` to those of `chmod`.
fn unix_permissions(mode: u32) -> u32 {
    let special = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];
    special.iter().filter(|(go, _)| mode & go != 0).fold(mode & 0o777, |bits, (_, unix)| bits | unix)
}

/// Parses a time of RFC 3339 into seconds since the Unix epoch, and nanoseconds. Returns the epoch,
/// which no proof has, if the time is malformed.
fn parse_mtime(text: &str) -> (i64, u32) {
    let time = OffsetDateTime::parse(text, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    (time.unix_timestamp(), time.nanosecond())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;
    use crate::config;
    use crate::enrolment_protocol::{PROOF_MODE, PROOF_MTIME};
    use crate::shutdown::Shutdown;

    /// Starts a fake engine that sends the response in `answers` for each request line, and returns
    /// a reader for it.
    fn engine<const N: usize>(
        answers: [(&'static str, &'static str); N],
        shutdown: &Shutdown,
    ) -> (tempfile::TempDir, DockerProofs) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        shutdown.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = String::new();
                BufReader::new(&mut stream).read_line(&mut head).await.unwrap();
                let known = answers.iter().find(|(line, _)| head == format!("{line} HTTP/1.1\r\n"));
                let answer = known.map_or("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", |(_, answer)| answer);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let engine = Engine::from_config(&config::Engine::Unix(socket), shutdown).unwrap();
        (directory, DockerProofs::new(engine))
    }

    #[tokio::test]
    async fn exactly_the_requests_that_a_filter_permits_are_made() {
        let answers = [
            (
                "GET /containers/abc/top",
                "HTTP/1.1 200 OK\r\nContent-Length: 96\r\n\r\n\
                 {\"Titles\":[\"UID\",\"PID\",\"CMD\"],\
                 \"Processes\":[[\"root\",\"7\",\"loopgate attest-proof x\"],[\"root\",\"8\"]]}",
            ),
            (
                // The header below is this object in base64:
                // {"name":"x","size":0,"mode":384,"mtime":"","linkTarget":""}
                "HEAD /containers/abc/archive?path=%2Ftmp%2Fx",
                "HTTP/1.1 200 OK\r\nX-Docker-Container-Path-Stat: \
                 eyJuYW1lIjoieCIsInNpemUiOjAsIm1vZGUiOjM4NCwibXRpbWUiOiIiLCJsaW5rVGFyZ2V0IjoiIn0=\r\n\r\n",
            ),
            ("HEAD /containers/abc/archive?path=%2Ftmp%2Fy", "HTTP/1.1 404 Not Found\r\n\r\n"),
        ];
        let shutdown = Shutdown::new();
        let (_directory, proofs) = engine(answers, &shutdown);
        assert_eq!(proofs.read_command_lines("abc").await.unwrap(), ["loopgate attest-proof x"]);
        let stat = FileStat { size: 0, mode: 0o600, mtime: (0, 0) };
        assert_eq!(proofs.stat("abc", Path::new("/tmp/x")).await.unwrap(), Some(Entry::File(stat)));
        assert_eq!(proofs.stat("abc", Path::new("/tmp/y")).await.unwrap(), None);
        assert_eq!(proofs.stat("abc", Path::new("/tmp/z")).await.unwrap_err().endpoint, "/containers/{id}/archive");
        assert_eq!(proofs.read_command_lines("another").await.unwrap_err().endpoint, "/containers/{id}/top");
    }

    #[test]
    fn an_entry_is_read_from_gos_mode_and_time() {
        let stat = |mode| to_entry(&PathStat { size: 3, mode, mtime: "2001-09-09T01:46:40.516041219Z".into() });
        let file = |mode| Entry::File(FileStat { size: 3, mode, mtime: PROOF_MTIME });
        for (mode, expected) in [
            (0o600, file(0o600)),
            (0o400 | 1 << 20, file(PROOF_MODE)),
            (0o755 | 1 << 23, file(0o4755)),
            (MODE_DIR | 0o755, Entry::Directory),
            (MODE_DIR | 1 << 20 | 0o777, Entry::Directory),
            (1 << 27 | 0o777, Entry::Other),
            (1 << 26, Entry::Other),
            (1 << 25, Entry::Other),
        ] {
            assert_eq!(stat(mode), expected, "{mode:o}");
        }
    }

    #[test]
    fn a_pid_mode_that_names_the_agent_or_is_unclear_shares_its_processes() {
        let (id, other) = ("a".repeat(64), "b".repeat(64));
        for (mode, expected) in [
            (String::new(), false),
            ("private".into(), false),
            ("host".into(), false),
            (format!("container:{id}"), true),
            (format!("container:{other}"), false),
            ("container:a-name".into(), true),
        ] {
            assert_eq!(joins_pid_namespace(&mode, &id), expected, "{mode}");
        }
    }

    #[tokio::test]
    async fn podman_is_asked_whether_a_pid_namespace_is_shared_and_docker_is_not() {
        const LIST: &str =
            "GET /containers/json?all=true&filters=%7B%22status%22%3A%5B%22running%22%2C%22paused%22%5D%7D";
        const PODMAN: &str = "HTTP/1.1 200 OK\r\nLibpod-API-Version: 5.8.6\r\nContent-Length: 0\r\n\r\n";
        const DOCKER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        const CONTAINERS: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n\
            [{\"Id\":\"a\",\"State\":\"running\"},{\"Id\":\"b\",\"State\":\"running\"}]";
        const PRIVATE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"HostConfig\":{\"PidMode\":\"private\"}}";
        const JOINED: &str =
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"HostConfig\":{\"PidMode\":\"container:a\"}}";
        for (ping, other, expected) in [(PODMAN, JOINED, true), (PODMAN, PRIVATE, false), (DOCKER, JOINED, false)] {
            let answers = [
                (LIST, CONTAINERS),
                ("GET /_ping", ping),
                ("GET /containers/a/json", PRIVATE),
                ("GET /containers/b/json", other),
            ];
            let shutdown = Shutdown::new();
            let (_directory, proofs) = engine(answers, &shutdown);
            let environment = proofs.read_environment("a", ProofKind::Process).await.unwrap().unwrap();
            assert_eq!(environment.shares_processes, expected);
            assert_eq!(proofs.read_environment("c", ProofKind::Process).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_process_is_no_proof_if_the_engines_kind_or_a_container_is_unknown() {
        const LIST: &str =
            "GET /containers/json?all=true&filters=%7B%22status%22%3A%5B%22running%22%2C%22paused%22%5D%7D";
        const ONE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[{\"Id\":\"a\",\"State\":\"running\"}]";
        const WITH_UNREADABLE: &str =
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[{\"Id\":\"a\",\"State\":\"running\"},{\"Id\":7}]";
        const PODMAN: &str = "HTTP/1.1 200 OK\r\nLibpod-API-Version: 5.8.6\r\nContent-Length: 0\r\n\r\n";
        const DOCKER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        const REFUSED: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
        const PRIVATE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"HostConfig\":{\"PidMode\":\"private\"}}";
        for (list, ping, expected) in [
            (ONE, PODMAN, Some(false)),
            (WITH_UNREADABLE, PODMAN, Some(true)),
            (WITH_UNREADABLE, DOCKER, Some(false)),
            (ONE, REFUSED, None),
        ] {
            let shutdown = Shutdown::new();
            let (_directory, proofs) =
                engine([(LIST, list), ("GET /_ping", ping), ("GET /containers/a/json", PRIVATE)], &shutdown);
            let environment = proofs.read_environment("a", ProofKind::Process).await;
            match expected {
                Some(shares) => assert_eq!(environment.unwrap().unwrap().shares_processes, shares, "{list} {ping}"),
                None => {
                    let error = environment.unwrap_err();
                    assert_eq!(error.endpoint, "/_ping");
                    assert!(error.source.to_string().contains("refuses GET /_ping (403"), "{}", error.source);
                }
            }
            assert!(
                proofs.read_environment("a", ProofKind::File).await.is_ok(),
                "a proof shown as a file does not depend on the engine's kind"
            );
        }
    }
}

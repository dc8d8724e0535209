//! Reads proofs through the Docker Engine API: `GET /containers/json`, `GET /containers/{id}/top`, `HEAD /containers/{id}/archive`.

use std::path::Path;

use super::proof::{Entry, NamespaceMember, ProofReader, ReadError};
use crate::discovery::docker::engine::Engine;
use crate::discovery::docker::error::Error;
use crate::discovery::docker::object::ContainerSummary;

/// Bits of Go's `os.FileMode`, in which the engine states what a path leads to.
const MODE_DIR: u32 = 1 << 31;
/// Every bit of Go's `os.ModeType`: what has none of them is a regular file.
const MODE_TYPE: u32 = MODE_DIR | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19;

/// Reads proofs through an engine.
#[derive(Clone, Debug)]
pub struct DockerProofs {
    engine: Engine,
}

impl DockerProofs {
    /// Reads proofs through `engine`.
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

impl ProofReader for DockerProofs {
    async fn members(&self, id: &str) -> Result<Vec<NamespaceMember>, ReadError> {
        let (listed, _) = self.engine.list().await.map_err(failed("/containers/json"))?;
        Ok(members(&listed, id))
    }

    async fn processes(&self, id: &str) -> Result<Vec<String>, ReadError> {
        let top = self.engine.top(id).await.map_err(failed("/containers/{id}/top"))?;
        let titles = top.titles.unwrap_or_default();
        let column = titles.iter().position(|title| matches!(title.as_str(), "CMD" | "COMMAND" | "ARGS"));
        let line = |process: Vec<String>| process.get(column?).cloned();
        Ok(top.processes.unwrap_or_default().into_iter().filter_map(line).collect())
    }

    async fn entry(&self, id: &str, path: &Path) -> Result<Option<Entry>, ReadError> {
        let stat = self.engine.path_stat(id, path.to_str().unwrap_or_default()).await.map_err(failed("/containers/{id}/archive"))?;
        Ok(stat.map(|stat| entry(stat.mode)))
    }
}

fn failed(endpoint: &'static str) -> impl Fn(Error) -> ReadError {
    move |error| ReadError { endpoint, source: error.into() }
}

fn entry(mode: u32) -> Entry {
    match mode & MODE_TYPE {
        0 => Entry::File,
        MODE_DIR => Entry::Directory,
        _ => Entry::Other,
    }
}

/// Returns the container `id` and those in its network namespace, of all that run.
fn members(listed: &[ContainerSummary], id: &str) -> Vec<NamespaceMember> {
    let Some(own) = listed.iter().find(|container| container.id.as_deref() == Some(id)) else { return Vec::new() };
    let owner = joined(own).and_then(|reference| listed.iter().find(|container| is(container, reference))).unwrap_or(own);
    let shares = |container: &&ContainerSummary| {
        container.id == owner.id || container.id == own.id || joined(container).is_some_and(|reference| is(owner, reference))
    };
    let running = |container: &&ContainerSummary| container.state.as_deref() == Some("running");
    let member = |container: &ContainerSummary| {
        let mounts = container.mounts.iter().flatten().filter_map(|mount| mount.destination.as_deref().map(Into::into));
        Some(NamespaceMember { id: container.id.clone()?, mounts: mounts.collect() })
    };
    listed.iter().filter(shares).filter(running).filter_map(member).collect()
}

/// Returns the id or name of the container whose network namespace `container` has joined.
fn joined(container: &ContainerSummary) -> Option<&str> {
    container.host_config.as_ref()?.network_mode.as_deref()?.strip_prefix("container:")
}

/// Says whether `reference` is the id or a name of `container`.
fn is(container: &ContainerSummary, reference: &str) -> bool {
    let named = |name: &String| name.strip_prefix('/').unwrap_or(name) == reference;
    container.id.as_deref() == Some(reference) || container.names.iter().flatten().any(named)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;
    use crate::config;
    use crate::shutdown::Shutdown;

    fn container(id: &str, mode: &str, state: &str) -> Value {
        json!({
            "Id": id,
            "Names": [format!("/{id}-name")],
            "State": state,
            "HostConfig": { "NetworkMode": mode },
            "Mounts": [{ "Type": "volume", "Destination": format!("/mnt/{id}") }],
        })
    }

    #[test]
    fn housemates_share_a_network_namespace() {
        let listed: Vec<ContainerSummary> = serde_json::from_value(json!([
            container("alone", "bridge", "running"),
            container("owner", "shop_default", "running"),
            container("by-id", "container:owner", "running"),
            container("by-name", "container:owner-name", "running"),
            container("dying", "container:owner", "restarting"),
            container("elsewhere", "container:gone", "running"),
        ]))
        .unwrap();
        let ids = |id: &str| members(&listed, id).into_iter().map(|member| member.id).collect::<Vec<_>>();
        assert_eq!(ids("alone"), ["alone"]);
        for id in ["owner", "by-id", "by-name"] {
            assert_eq!(ids(id), ["owner", "by-id", "by-name"], "{id}");
        }
        assert_eq!(ids("elsewhere"), ["elsewhere"]);
        assert!(ids("unknown").is_empty());
        assert_eq!(members(&listed, "alone")[0].mounts, [Path::new("/mnt/alone")]);
    }

    /// An engine that answers each request line as `answers` say, and the reader that asks it.
    fn engine<const N: usize>(answers: [(&'static str, &'static str); N], shutdown: &Shutdown) -> (tempfile::TempDir, DockerProofs) {
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
        let engine = Engine::new(&config::Engine::Unix(socket)).unwrap();
        (directory, DockerProofs::new(engine))
    }

    #[tokio::test]
    async fn exactly_the_requests_that_a_filter_permits_are_made() {
        let answers = [
            (
                "GET /containers/abc/top",
                "HTTP/1.1 200 OK\r\nContent-Length: 96\r\n\r\n\
                 {\"Titles\":[\"UID\",\"PID\",\"CMD\"],\"Processes\":[[\"root\",\"7\",\"loopgate attest-proof x\"],[\"root\",\"8\"]]}",
            ),
            (
                // {"name":"x","size":0,"mode":384,"mtime":"","linkTarget":""}
                "HEAD /containers/abc/archive?path=%2Ftmp%2Fx",
                "HTTP/1.1 200 OK\r\nX-Docker-Container-Path-Stat: \
                 eyJuYW1lIjoieCIsInNpemUiOjAsIm1vZGUiOjM4NCwibXRpbWUiOiIiLCJsaW5rVGFyZ2V0IjoiIn0=\r\n\r\n",
            ),
            ("HEAD /containers/abc/archive?path=%2Ftmp%2Fy", "HTTP/1.1 404 Not Found\r\n\r\n"),
        ];
        let shutdown = Shutdown::new();
        let (_directory, proofs) = engine(answers, &shutdown);
        assert_eq!(proofs.processes("abc").await.unwrap(), ["loopgate attest-proof x"]);
        assert_eq!(proofs.entry("abc", Path::new("/tmp/x")).await.unwrap(), Some(Entry::File));
        assert_eq!(proofs.entry("abc", Path::new("/tmp/y")).await.unwrap(), None);
        assert_eq!(proofs.entry("abc", Path::new("/tmp/z")).await.unwrap_err().endpoint, "/containers/{id}/archive");
        assert_eq!(proofs.processes("another").await.unwrap_err().endpoint, "/containers/{id}/top");
    }

    #[test]
    fn the_type_of_an_entry_is_read_from_gos_mode_bits() {
        for (mode, expected) in [
            (0o600, Entry::File),
            (0o4755 | 1 << 23, Entry::File),
            (MODE_DIR | 0o755, Entry::Directory),
            (MODE_DIR | 1 << 20 | 0o777, Entry::Directory),
            (1 << 27 | 0o777, Entry::Other),
            (1 << 26, Entry::Other),
            (1 << 25, Entry::Other),
        ] {
            assert_eq!(entry(mode), expected, "{mode:o}");
        }
    }
}

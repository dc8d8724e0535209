//! The filter before the Docker socket permits the requests that loopgate sends, and no others.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::container::{Container, Running};
use crate::engine::{Engine, eventually};

/// Starts the filter of compose.yaml, with the directory of its socket on the host.
pub fn filter(engine: &Engine, directory: &Path) -> Running {
    filter_with(engine, directory, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/socket-filter")))
}

/// Does the same with another directory of configuration.
pub fn filter_with(engine: &Engine, directory: &Path, configuration: &Path) -> Running {
    let filter = engine.run(
        Container::new("filter")
            .hardened()
            .option("--user=0:65532")
            .option("--network=none")
            .mount(configuration, "/etc/socket-filter")
            .mount(socket(), "/var/run/docker.sock")
            .mount_writable(directory, "/run/docker-filter")
            .command(["haproxy", "-W", "-db", "-f", "/etc/socket-filter/haproxy-unix.cfg"]),
    );
    eventually("the filter listens", || UnixStream::connect(directory.join("docker.sock")).ok());
    filter
}

/// The engine's socket on this machine.
pub fn socket() -> String {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
    host.strip_prefix("unix://").expect("the tests need the engine's unix socket").to_owned()
}

/// Sends a request to the filter; returns the status code, and the response up to the end of its
/// head.
fn ask(directory: &Path, request: &str, fields: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(directory.join("docker.sock")).expect("the filter listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: docker\r\n{fields}\r\n").unwrap();
    let mut answer = [0; 4096];
    let mut length = 0;
    // Not to the end of the response, because `/events` has no end.
    while !answer[..length].windows(4).any(|end| end == b"\r\n\r\n") && length < answer.len() {
        match stream.read(&mut answer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) => panic!("{request}: {error}"),
        }
    }
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{request}: {answer:?}")), answer)
}

#[test]
fn the_filter_permits_loopgates_requests() {
    let Some(engine) = Engine::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let network = engine.network();
    let container = engine.run(Container::idle("subject").network(&network));
    let _filter = filter(&engine, directory.path());
    let (id, network) = (container.id(), network.name());
    let image = container.inspect("{{.Image}}");

    let permitted = [
        ("GET /_ping".to_owned(), 200),
        ("HEAD /_ping".into(), 200),
        ("GET /version".into(), 200),
        ("GET /events".into(), 200),
        ("GET /events?filters=%7B%22type%22%3A%5B%22container%22%5D%7D".into(), 200),
        ("GET /containers/json".into(), 200),
        ("GET /containers/json?all=true".into(), 200),
        (format!("GET /containers/{id}/json"), 200),
        (format!("GET /containers/{}/json", container.name()), 200),
        ("GET /containers/nobody/json".into(), 404),
        (format!("GET /images/{image}/json"), 200),
        (format!("GET /images/sha256:{}/json", "0".repeat(64)), 404),
        (format!("GET /containers/{id}/top"), 200),
        (format!("HEAD /containers/{id}/archive?path=%2Fetc%2Fhostname"), 200),
        ("GET /networks".into(), 200),
        (format!("GET /networks/{network}"), 200),
    ];
    for (request, expected) in permitted {
        let (method, path) = request.split_once(' ').unwrap();
        for request in [request.clone(), format!("{method} /v1.41{path}")] {
            let (status, answer) = ask(directory.path(), &request, "Connection: close\r\n");
            assert_eq!(status, expected, "{request}: {answer}");
        }
    }
}

#[test]
fn the_filter_refuses_all_other_requests() {
    let Some(engine) = Engine::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let container = engine.run(Container::idle("subject").env("SECRET", "hunter2"));
    let _filter = filter(&engine, directory.path());
    let id = container.id();

    let refused = [
        // Reading requests that reveal secrets, or do more than read.
        format!("GET /containers/{id}/attach/ws?stdin=1&stream=1"),
        format!("GET /containers/{id}/logs?stdout=1"),
        format!("GET /containers/{id}/export"),
        format!("GET /containers/{id}/stats"),
        format!("GET /containers/{id}/changes"),
        format!("GET /containers/{id}/top?ps_args=eww"),
        format!("GET /containers/{id}/archive?path=%2Fetc%2Fpasswd"),
        format!("HEAD /containers/{id}/archive"),
        format!("HEAD /containers/{id}/archive?path=%2Fetc&x=y"),
        "GET /info".into(),
        "GET /images/json".into(),
        "GET /volumes".into(),
        "GET /secrets".into(),
        "GET /services".into(),
        "GET /system/df".into(),
        "GET /".into(),
        // Writing requests, also for paths that may be read.
        "POST /containers/create".into(),
        "POST /containers/json".into(),
        format!("POST /containers/{id}/exec"),
        format!("POST /containers/{id}/kill"),
        format!("PUT /containers/{id}/archive?path=%2F"),
        format!("DELETE /containers/{id}"),
        "POST /networks/prune".into(),
        "OPTIONS /_ping".into(),
        // Other spellings of forbidden and of permitted paths.
        "GET //containers/json".into(),
        "GET /containers/../info".into(),
        "GET /containers/../json".into(),
        "GET /./info".into(),
        "GET /containers/json/".into(),
        "GET /containers%2fjson".into(),
        format!("GET /containers/{id}%2flogs"),
        format!("GET /containers/{id}/logs%3f/json"),
        format!("GET /containers/{id}/logs;/json"),
        "GET /Containers/json".into(),
        "GET /v1.41/v1.41/containers/json".into(),
        "GET /vX/containers/json".into(),
        "GET /version/json".into(),
        "GET http://docker/info".into(),
    ];
    for request in &refused {
        let (status, answer) = ask(directory.path(), request, "Connection: close\r\n");
        assert_eq!(status, 403, "{request}: {answer}");
        let is_filters = request.starts_with("HEAD") || answer.contains("refused by the socket filter");
        assert!(is_filters, "{request} was not refused by the filter: {answer}");
    }
}

#[test]
fn the_filter_refuses_upgrades_on_permitted_paths() {
    let Some(engine) = Engine::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let _filter = filter(&engine, directory.path());
    for upgrade in ["websocket", "tcp", "h2c"] {
        for path in ["/_ping", "/events", "/containers/json"] {
            // The fields of a WebSocket handshake are complete, so that it isn't refused for a
            // missing one.
            let websocket = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
            let fields = format!("Connection: Upgrade\r\nUpgrade: {upgrade}\r\n{websocket}");
            let (status, answer) = ask(directory.path(), &format!("GET {path}"), &fields);
            assert_eq!(status, 403, "{upgrade} on {path}: {answer}");
        }
    }
}

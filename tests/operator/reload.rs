//! Reloading: `loopgate reload`, changes of the configuration file, and requests that may not
//! reload.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;

use loopgate_test_support::sidecar::{Launch, Sidecar, loopgate};

/// A sidecar with the configuration file `text`, and the socket of its gateway.
fn sidecar(text: &str) -> (Sidecar, TcpListener) {
    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    (Launch::new().gateway(gateway.local_addr().unwrap()).config(text).start(), gateway)
}

fn reload(admin: SocketAddr, arguments: &[&str]) -> Output {
    let admin = format!("--admin={admin}");
    loopgate(["reload", &admin].iter().chain(arguments)).output().unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

/// Sends a request with this head and an empty body, and returns the status code.
fn send(admin: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(admin).unwrap();
    write!(stream, "{head}Content-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn reload_prints_what_changed_and_what_needs_a_restart() {
    let (sidecar, _gateway) = sidecar("");
    std::fs::write(sidecar.config_file(), "[external]\ndeny = [\"10.0.0.0/8\"]\n[tls]\nnames = [\"new.example\"]\n")
        .unwrap();
    let first = reload(sidecar.admin_address(), &["--json"]);
    assert!(first.status.success(), "{first:?}");
    let outcome: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(outcome, serde_json::json!({"applied": ["external"], "needs_restart": ["tls.names"], "error": null}));
    let second = reload(sidecar.admin_address(), &[]);
    assert_eq!(
        text(&second.stdout),
        "reloaded; no option changed\nthese options changed but need a restart: tls.names\n"
    );
}

#[test]
fn a_rejected_configuration_is_printed_and_the_old_one_stays() {
    let (sidecar, _gateway) = sidecar("");
    std::fs::write(sidecar.config_file(), "[external]\ndeny = [\"nonsense\"]\n").unwrap();
    let output = reload(sidecar.admin_address(), &[]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("loopgate: reload rejected, old configuration still in use: "), "{error}");
    assert!(error.contains("loopgate.toml:2") && error.contains("nonsense") && output.stdout.is_empty(), "{error}");
    assert!(sidecar.status_json()["config_problem"].as_str().unwrap().contains("nonsense"));
}

#[test]
fn a_changed_file_is_applied_without_a_request() {
    let (sidecar, _gateway) = sidecar("");
    std::fs::write(sidecar.config_file(), "[external]\ndeny = [\"10.0.0.0/8\"]\n").unwrap();
    let line = sidecar.process().wait_for_log_blocking("configuration reloaded");
    assert!(line.contains("external"), "{line}");
}

#[test]
fn web_pages_may_not_reload() {
    let (sidecar, _gateway) = sidecar("");
    let admin = sidecar.admin_address();
    let host = format!("Host: {admin}\r\n");
    let reload_header = "X-Loopgate-Reload: 1\r\n";
    for (request, status) in [
        (format!("POST /reload HTTP/1.1\r\n{host}{reload_header}"), "200"),
        (format!("POST /reload HTTP/1.1\r\n{host}"), "403"),
        (format!("POST /reload HTTP/1.1\r\n{host}{reload_header}Origin: http://{admin}\r\n"), "403"),
        (format!("POST /reload HTTP/1.1\r\nHost: evil.example\r\n{reload_header}"), "421"),
        (format!("GET /reload HTTP/1.1\r\n{host}{reload_header}"), "405"),
        // A browser's preflight request, which precedes a request with this header to another
        // origin.
        (
            format!(
                "OPTIONS /reload HTTP/1.1\r\n{host}Origin: http://evil.example\r\n\
                 Access-Control-Request-Headers: x-loopgate-reload\r\n"
            ),
            "405",
        ),
        (format!("POST /status HTTP/1.1\r\n{host}{reload_header}"), "405"),
    ] {
        assert_eq!(send(admin, &request), status, "{request}");
    }
}

#[test]
fn without_an_admin_listener_reload_names_the_other_ways() {
    let output = loopgate(["reload", "--admin=off"]).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("--admin off") && error.contains("SIGHUP") && error.contains("--config"), "{error}");
}

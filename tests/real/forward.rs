//! Other ports on the gateway's loopback (`--forward`): the relay for OpenClaw's browser extension,
//! which 2026.2.19 opens on 18792, and a Node.js server that reports each client's address and
//! headers.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::{OpenClaw, TOKEN};
use crate::openclaw::directory;
use crate::sidecar;
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::process::Process;
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};
use loopgate_test_support::sidecar::binary;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/forward.mjs");
/// loopgate's address for the relay: the relay's port, on the bridge.
const RELAY: &str = "172.18.0.2:18792";
/// The server's port on loopback.
const SERVER_PORT: u16 = 3334;
/// loopgate's address for the server: another port, on the bridge.
const SERVER: &str = "172.18.0.2:23334";

#[test]
fn other_ports_of_the_gateway_have_the_same_lanes_as_its_own_port() {
    run_exclusively("real", "other ports of the gateway", check_forwards);
}

/// The programs at the ends of the connections.
struct Ends<'a> {
    network: &'a Network,
    openclaw: &'a OpenClaw<'a>,
    ca: &'a Path,
}

impl Ends<'_> {
    /// The command that runs `role` of the script on `host`.
    fn command(&self, host: Host, role: &str, options: Value) -> Command {
        let mut all_options = json!({"ws": self.openclaw.modules(), "role": role, "ca": self.ca});
        all_options.as_object_mut().expect("an object").extend(options.as_object().expect("an object").clone());
        let mut command = self.network.command(host, self.openclaw.node());
        command.arg(SCRIPT).arg(all_options.to_string());
        command
    }

    /// Runs `role` on `host`, and returns the last line that it prints.
    fn run(&self, host: Host, role: &str, options: Value) -> Value {
        let output = self.command(host, role, options).output().expect("node");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        last.unwrap_or_else(|| panic!("{role}: {text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Requests `url` from `host`, and returns the status code and the body of the response.
    fn curl(&self, host: Host, url: &str, arguments: &[&str]) -> (u16, String) {
        let mut curl = self.network.command(host, "curl");
        curl.args(["--silent", "--max-time", "20", "--write-out", "\n%{http_code}", "--cacert"]).arg(self.ca);
        let output = curl.args(arguments).arg(url).output().expect("curl");
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.parse().expect("a status"), body.to_owned())
    }
}

fn check_forwards() -> Result<(), Missing> {
    let directory = directory("forward");
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, "2026.2.19", &directory)?;
    let _gateway = openclaw.start(&["127.0.0.2"]);
    let rules = directory.join("loopgate.toml");
    fs::write(
        &rules,
        "[listen]\nforward = [\"18792\", \"23334:3334\"]\n[[external.paths]]\nallow = \"/public\"\nport = 3334\nupgrade = true\n\
         [[external.paths]]\ndeny = \"/\"\nport = 3334\n",
    )
    .expect("a file");
    let sidecar = sidecar::start(&network, &directory, &[&format!("--config={}", rules.display())]);
    let ca = sidecar.ca_file();
    let ends = Ends { network: &network, openclaw: &openclaw, ca: &ca };
    let server = Process::start(
        "the server",
        ends.command(Host::Gateway, "server", json!({"port": SERVER_PORT})),
        &directory.join("server.log"),
    );
    server.wait_for_log_blocking("listening");

    requests_have_a_lane(&ends);
    websockets_have_a_lane(&ends);
    path_rules_apply_to_outsiders_only(&ends);
    the_relay_carries_commands_to_a_browser(&ends, &directory);
    let mut status = network.command(Host::Gateway, binary());
    let status = status.args(["status", "--json"]).output().expect("loopgate");
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let forwards = status["forwards"].as_array().expect("forwards");
    let reachable: Vec<_> = forwards.iter().map(|forward| (&forward["target"], &forward["reachable"])).collect();
    assert_eq!(json!(reachable), json!([["127.0.0.1:18792", true], ["127.0.0.1:3334", true]]), "{status:#}");
    sidecar.stop();
    Ok(())
}

/// Fails unless the server saw a client of the agent lane: a loopback address, and no forwarding
/// header.
fn assert_local(reported: &Value) {
    let address = reported["address"].as_str().expect("an address");
    assert!(address.starts_with("127.77."), "{reported}");
    assert_eq!(reported["headers"]["host"], format!("127.0.0.1:{SERVER_PORT}"), "{reported}");
    assert_eq!(reported["headers"]["x-forwarded-for"], Value::Null, "{reported}");
}

/// Fails unless the server saw a client of the external lane, with its real address in the header.
fn assert_external(reported: &Value) {
    assert_eq!(reported["address"], "127.0.0.2", "{reported}");
    let headers = &reported["headers"];
    assert_eq!(headers["x-forwarded-for"], Host::External.address(), "{reported}");
    assert_eq!(
        (&headers["x-forwarded-proto"], &headers["x-forwarded-host"]),
        (&json!("https"), &json!(SERVER)),
        "{reported}"
    );
    assert_eq!(headers["host"], SERVER, "{reported}");
}

fn requests_have_a_lane(ends: &Ends) {
    print_now("  requests over h1 and h2: an agent's is local, an outsider's is not, whatever headers it sends");
    let url = format!("https://{SERVER}/public?a=b");
    for protocol in ["--http1.1", "--http2"] {
        let reported = |host| -> Value {
            let arguments = [protocol, "--header", "X-Forwarded-For: 127.0.0.1", "--data", "some text"];
            let (status, body) = ends.curl(host, &url, &arguments);
            assert_eq!(status, 200, "{body}");
            let reported: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!((&reported["url"], &reported["body"]), (&json!("/public?a=b"), &json!("some text")));
            reported
        };
        assert_local(&reported(Host::Agent));
        assert_external(&reported(Host::External));
    }
}

fn websockets_have_a_lane(ends: &Ends) {
    print_now("  WebSockets: the same");
    let url = format!("wss://{SERVER}/public");
    let open = |host| {
        let end = ends.run(host, "socket", json!({"url": url, "headers": {"X-Forwarded-For": "127.0.0.1"}}));
        assert_eq!(end["echoed"], json!(["one", "two"]), "{end}");
        end["greeting"].clone()
    };
    assert_local(&open(Host::Agent));
    assert_external(&open(Host::External));
}

fn path_rules_apply_to_outsiders_only(ends: &Ends) {
    print_now("  a path rule for that port applies to outsiders, and to no other port");
    let url = format!("https://{SERVER}/other");
    assert_eq!((ends.curl(Host::External, &url, &[]).0, ends.curl(Host::Agent, &url, &[]).0), (403, 200));
    let socket = |host| ends.run(host, "socket", json!({"url": format!("wss://{SERVER}/other")}));
    assert_eq!(socket(Host::External)["refused"], 403);
    assert_eq!(socket(Host::Agent)["echoed"], json!(["one", "two"]));
    assert_eq!(ends.curl(Host::External, &format!("https://{RELAY}/extension/status"), &[]).0, 200);
}

/// OpenClaw issues #8273 and #66690: a sandbox can't reach the relay on the gateway's loopback.
fn the_relay_carries_commands_to_a_browser(ends: &Ends, directory: &Path) {
    print_now("  the relay requires the token, and sends commands of an agent to a browser on another host");
    let connected = |host| ends.curl(host, &format!("https://{RELAY}/extension/status"), &[]);
    assert_eq!(connected(Host::Agent), (200, r#"{"connected":false}"#.into()));
    let version = format!("https://{RELAY}/json/version");
    let token = format!("x-openclaw-relay-token: {TOKEN}");
    for host in [Host::Agent, Host::External] {
        assert_eq!(ends.curl(host, &version, &[]).0, 401);
        let (status, body) = ends.curl(host, &version, &["--header", &token]);
        assert!(status == 200 && body.contains("OpenClaw/extension-relay"), "{status} {body}");
    }

    let relay = |path: &str, token: &str| format!("wss://{RELAY}{path}?token={token}");
    let debugger = |host, token| {
        let methods = ["Browser.getVersion", "Page.navigate"];
        ends.run(host, "debugger", json!({"url": relay("/cdp", token), "methods": methods}))
    };
    let origin = json!({"Origin": "chrome-extension://abcdefghijklmnopabcdefghijklmnop"});
    let extension = |token| json!({"url": relay("/extension", token), "headers": origin, "timeout": 120_000});
    assert_eq!(ends.run(Host::External, "extension", extension("wrong"))["refused"], 401);
    assert_eq!(debugger(Host::Agent, TOKEN)["refused"], 503, "there is no extension yet");

    let command = ends.command(Host::External, "extension", extension(TOKEN));
    let running = Process::start("the extension", command, &directory.join("extension.log"));
    running.wait_until("connected", Duration::from_secs(30), || connected(Host::Agent).1 == r#"{"connected":true}"#);
    assert_eq!(debugger(Host::Agent, "wrong")["refused"], 401);
    for host in [Host::Agent, Host::External] {
        let end = debugger(host, TOKEN);
        assert_eq!(end["answers"]["Browser.getVersion"]["product"], "Chrome/OpenClaw-Extension-Relay", "{end}");
        assert_eq!(
            end["answers"]["Page.navigate"],
            json!({"ran": "Page.navigate", "with": {"of": "the test"}}),
            "{end}"
        );
    }
}

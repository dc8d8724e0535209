//! Sign-in at a front, as docs/sign-in.md describes it: the real Caddy and Traefik, a fake auth
//! server, and a gateway that accepts the user name in a trusted proxy's header. Only the front may
//! set this header.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::front::{SITE, program, traefik_directory};
use crate::gateway::{LOOPBACK, OpenClaw, SPAWN_TOOL};
use crate::openclaw::directory;
use crate::sidecar::{self, URL, WS_URL};
use loopgate_test_support::device_client::{DeviceClient, End};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::process::Process;
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};

const DOCUMENT: &str = include_str!("../../docs/sign-in.md");
/// A Python program that answers 200 with the name in the cookie `session`, or 401 without the
/// cookie.
const AUTH_SERVER: &str = "
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.headers.get('Cookie', '').partition('session=')[2]
        self.send_response(200 if name else 401)
        if name:
            self.send_header('Remote-User', name)
        self.end_headers()
ThreadingHTTPServer(('127.0.0.1', 9091), Handler).serve_forever()
";
const ALICE: &str = "alice@example.com";
const PASSWORD: &str = "the-password-of-the-tests";

#[test]
fn behind_caddy_with_forward_auth_only_the_auth_server_names_the_user() {
    run_exclusively("real", "sign-in, Caddy", || check_sign_in_behind("caddy", caddy));
}

#[test]
fn behind_traefik_with_forward_auth_only_the_auth_server_names_the_user() {
    run_exclusively("real", "sign-in, Traefik", || check_sign_in_behind("traefik", traefik));
}

/// The document's fenced block in `language` that contains `part`, with the addresses and paths of
/// this test.
fn block(language: &str, part: &str, ca: &Path) -> String {
    let begin = format!("```{language}\n");
    let blocks = DOCUMENT.split(begin.as_str()).skip(1).filter_map(|text| text.split("```").next());
    let matching: Vec<&str> = blocks.filter(|block| block.contains(part)).collect();
    assert_eq!(matching.len(), 1, "one block of {language} with {part:?}");
    let ca = ca.to_str().expect("UTF-8");
    matching[0]
        .replace("authelia:9091", "127.0.0.1:9091")
        .replace("https://gateway:18443", URL)
        .replace("/ca/ca.pem", ca)
}

type Start = fn(&Network, &Path, &Path, &Path) -> (Process, PathBuf);

fn check_sign_in_behind(name: &str, start: Start) -> Result<(), Missing> {
    let directory = directory(&format!("sign-in-{name}"));
    let program = program(name)?;
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, "2026.9.6", &directory)?;
    let proxy = json!({"userHeader": "remote-user", "allowLoopback": true, "allowUsers": [ALICE]});
    let gateway = openclaw.launch(&json!({"gateway": {
        "mode": "local", "port": 18789, "bind": "loopback", "trustedProxies": ["127.0.0.2"],
        "auth": {"mode": "trusted-proxy", "trustedProxy": proxy, "password": PASSWORD},
        "controlUi": {"allowedOrigins": [format!("https://{SITE}")]},
        "tools": {"allow": [SPAWN_TOOL]},
    }}));
    let local = || openclaw.client(Host::Gateway, LOOPBACK).password(PASSWORD);
    gateway.wait_until("ready", Duration::from_secs(180), || matches!(local().connect(), End::Hello { .. }));
    let sidecar = sidecar::start(
        &network,
        &directory,
        &["--trusted-proxy", Host::Front.address(), "--identity-header", "remote-user"],
    );
    let mut auth_server = network.command(Host::Front, "python3");
    auth_server.args(["-c", AUTH_SERVER]);
    let _auth_server = Process::start("the auth server", auth_server, &directory.join("auth.log"));
    let front_directory = directory.join("front");
    fs::create_dir_all(&front_directory).expect("a directory");
    let (front, ca) = start(&network, &program, &front_directory, &sidecar.ca_file());

    // From `host`, requests a page that needs a user name, with these headers; returns the status
    // code.
    let status = |host: Host, url: &str, ca: &Path, headers: &[&str]| {
        let mut curl = network.command(host, "curl");
        curl.args(["--silent", "--max-time", "20", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert"])
            .arg(ca);
        curl.args(["--resolve", &format!("{SITE}:443:{}", Host::Front.address())]);
        curl.args(headers.iter().flat_map(|header| ["--header", header]))
            .arg(format!("{url}/__openclaw__/control-ui-config.json"));
        String::from_utf8_lossy(&curl.output().expect("curl").stdout).into_owned()
    };
    let site = format!("https://{SITE}");
    let through = |headers: &[&str]| status(Host::External, &site, &ca, headers);
    front.wait_until("the front serves the page", Duration::from_secs(180), || {
        through(&["Cookie: session=alice@example.com"]) == "200"
    });

    print_now("  a user who is not signed in or not allowed is refused, whatever headers they send");
    for headers in [
        &[][..],
        &["Remote-User: alice@example.com"],
        &["remote_user: alice@example.com"],
        &["Cookie: session=bob@example.com"],
        &["Cookie: session=bob@example.com", "Remote-User: alice@example.com"],
        &["Cookie: session=bob@example.com", "Remote_User: alice@example.com", "X-Forwarded-User: alice@example.com"],
    ] {
        assert_eq!(through(headers), "401", "{headers:?}");
    }
    print_now("  a signed-in user can't change their name");
    assert_eq!(through(&["Cookie: session=alice@example.com", "Remote-User: mallory@example.com"]), "200");

    print_now("  only the front may send the header with the name");
    let direct = |host: Host, headers: &[&str]| status(host, URL, &sidecar.ca_file(), headers);
    for host in [Host::External, Host::Agent] {
        assert_eq!(direct(host, &["Remote-User: alice@example.com"]), "401", "{host:?}");
    }
    // The trusted front itself may send the header, as cloudflared and Tailscale do.
    assert_eq!(direct(Host::Front, &["Remote-User: alice@example.com", "X-Forwarded-For: 198.51.100.7"]), "200");
    let password = format!("Authorization: Bearer {PASSWORD}");
    assert_eq!(direct(Host::External, &[&password]), "401", "the password is for local clients");

    print_now("  sub-agents work; local clients and agents use the password");
    openclaw.assert_spawns(PASSWORD);
    openclaw.run(&["gateway", "call", "health"]);
    assert_eq!(direct(Host::Agent, &[&password]), "200");
    let client = |host, url: &str| -> DeviceClient { openclaw.client(host, url).password(PASSWORD) };
    let local = client(Host::Gateway, LOOPBACK).connect().scopes();
    assert!(local.contains(&"operator.admin".to_owned()), "{local:?}");
    assert_eq!(client(Host::Agent, WS_URL).ca(&sidecar.ca_file()).connect().scopes(), local);
    drop(front);
    sidecar.stop();
    Ok(())
}

fn caddy(network: &Network, program: &Path, directory: &Path, gateway_ca: &Path) -> (Process, PathBuf) {
    let configuration = directory.join("Caddyfile");
    let site = block("text", "forward_auth", gateway_ca);
    fs::write(&configuration, format!("{{\n\tlocal_certs\n\tskip_install_trust\n}}\n{site}")).expect("a file");
    let mut command: Command = network.command(Host::Front, program);
    command.args(["run", "--config"]).arg(&configuration).env("HOME", directory);
    command.env("XDG_DATA_HOME", directory.join("data")).env("XDG_CONFIG_HOME", directory.join("config"));
    let ca = directory.join("data/caddy/pki/authorities/local/root.crt");
    (Process::start("Caddy", command, &directory.join("log")), ca)
}

fn traefik(network: &Network, program: &Path, directory: &Path, gateway_ca: &Path) -> (Process, PathBuf) {
    let (dynamic, certificate) = traefik_directory(directory, SITE);
    fs::write(dynamic.join("sign-in.yaml"), block("yaml", "forwardAuth", gateway_ca)).expect("a file");
    let mut command = network.command(Host::Front, program);
    command.args([
        "--entryPoints.websecure.address=:443",
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
    ]);
    command.arg(format!("--providers.file.directory={}", dynamic.display()));
    (Process::start("Traefik", command, &directory.join("log")), certificate)
}

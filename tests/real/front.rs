//! A public reverse proxy ("front") on its own host before loopgate: the real Caddy and Traefik
//! with their configuration in docker/. loopgate accepts a client's address from the front; a
//! client can't change it with its own headers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::browser::{self, Browser};
use crate::gateway::{LOOPBACK, OpenClaw, TOKEN};
use crate::openclaw::{FORGERIES, directory, others_need_approval};
use crate::sidecar::{self, URL, WS_URL};
use loopgate_test_support::device_client::{DeviceClient, End};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::process::Process;
use loopgate_test_support::requirements::{Missing, cache_dir, print_now, run_exclusively};

const DOCKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docker");
/// The front's public host name. No DNS server has it; clients get its address as an option.
pub const SITE: &str = "gateway.example.com";
/// The address of the gateway's host on the bridge.
const GATEWAY: &str = "172.18.0.2";
/// The port on which loopgate accepts plain HTTP.
const PLAIN_PORT: u16 = 18080;
/// An unused address that clients put into their headers.
const CLAIMED: &str = "198.51.100.66";

#[test]
fn behind_caddy_the_gateway_knows_each_client_and_the_control_ui_works() {
    run_exclusively("real", "Caddy", || {
        let modules = browser::modules()?;
        check_behind("caddy", caddy, &[], |network, openclaw, front| {
            print_now("  the Control UI connects through it after an approval");
            let url = format!("https://{SITE}");
            let home = front.directory.join("browser");
            let browser = Browser { network, openclaw, modules: &modules, url: &url, ca: &front.ca, home: &home };
            assert_eq!(browser.visit(&[&format!("--host-resolver-rules=MAP {SITE} {}", Host::Front.address())]), "h2");
        })
    });
}

#[test]
fn behind_traefik_the_gateway_knows_each_client() {
    run_exclusively("real", "Traefik", || check_behind("traefik", traefik, &[], |_, _, _| {}));
}

#[test]
fn behind_caddy_over_plain_http_the_gateway_knows_each_client() {
    run_exclusively("real", "Caddy, plain HTTP", || {
        let listen = format!("--listen-plain=bridge:{PLAIN_PORT}");
        check_behind("caddy", plain_caddy, &[&listen], |network, _, _| {
            print_now("  plain HTTP is refused to every client but the front");
            for host in [Host::External, Host::Agent, Host::Gateway] {
                let mut curl = network.command(host, "curl");
                curl.args(["--silent", "--max-time", "5", &format!("http://{GATEWAY}:{PLAIN_PORT}/healthz")]);
                let output = curl.output().expect("curl");
                assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
            }
        })
    });
}

/// A running front that forwards to a sidecar.
struct Front {
    process: Process,
    /// The CA certificate of the front's public certificate.
    ca: PathBuf,
    directory: PathBuf,
}

type Start = fn(&Network, &Path, PathBuf, &Path) -> Front;

fn check_behind(
    name: &str,
    start: Start,
    flags: &[&str],
    more_checks: impl FnOnce(&Network, &OpenClaw, &Front),
) -> Result<(), Missing> {
    let directory = directory(name);
    let program = program(name)?;
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, "2026.9.6", &directory)?.allow_origin(&format!("https://{SITE}"));
    let _gateway = openclaw.start(&["127.0.0.2"]);
    // The front's address is in --agent-cidr too, by mistake. A trusted proxy is no agent even
    // then.
    let address = Host::Front.address();
    let trusting = ["--trusted-proxy", address, "--agent-cidr", address];
    let sidecar = sidecar::start(&network, &directory, &[&trusting, flags].concat());
    let front = start(&network, &program, directory.join("front"), &sidecar.ca_file());
    let through = |host| openclaw.client(host, &format!("wss://{SITE}")).at(Host::Front.address()).ca(&front.ca);
    let direct = |host| openclaw.client(host, WS_URL).ca(&sidecar.ca_file());
    let local = openclaw.client(Host::Gateway, LOOPBACK).connect().scopes();

    others_need_approval(&openclaw, &through, &local, &directory.join("external-device.json"));
    http_requests_pass(&network, &front);
    forged_headers_change_nothing(&through);
    claimed_addresses_are_not_believed(&openclaw, &[&through, &direct]);
    only_agents_are_agents(&through, &direct, &local);
    more_checks(&network, &openclaw, &front);
    sidecar.stop();
    Ok(())
}

fn http_requests_pass(network: &Network, front: &Front) {
    print_now("  the page and the HTTP API answer over h1 and h2, and the API requires the token");
    for protocol in ["--http1.1", "--http2"] {
        let status = |path: &str, arguments: &[&str]| {
            let mut curl = front.curl(network, path);
            let output = curl
                .args(["--write-out", "%{http_code} %{http_version}", protocol])
                .args(arguments)
                .output()
                .expect("curl");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let version = if protocol == "--http2" { "2" } else { "1.1" };
        let authorization = format!("authorization: Bearer {TOKEN}");
        let invoke = ["--json", r#"{"tool": "sessions_list", "args": {}}"#, "--header", &authorization];
        assert_eq!(status("/", &[]), format!("200 {version}"));
        assert_eq!(status("/tools/invoke", &invoke), format!("200 {version}"));
        assert_eq!(status("/tools/invoke", &["--request", "POST"]), format!("401 {version}"));
    }
}

fn forged_headers_change_nothing(through: &dyn Fn(Host) -> DeviceClient) {
    print_now("  a client needs an approval, whatever headers it sends");
    for headers in FORGERIES {
        print_now(format_args!("    {headers:?}"));
        match through(Host::External).headers(headers).connect() {
            // The front need not forward a request for another site.
            End::Refused { .. } if headers.iter().any(|(name, _)| *name == "Host") => {}
            end => drop(end.pairing_request()),
        }
    }
}

fn claimed_addresses_are_not_believed(openclaw: &OpenClaw, ways: &[&dyn Fn(Host) -> DeviceClient]) {
    print_now("  a claimed address never reaches the gateway, neither through the front nor past it");
    let forwarded = format!("for={CLAIMED}");
    for way in ways {
        for name in ["X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP"] {
            let claim = if name == "Forwarded" { &forwarded } else { CLAIMED };
            way(Host::External).headers(&[(name, claim), ("X-Forwarded-Proto", "https")]).connect().pairing_request();
        }
    }
    let devices = openclaw.run(&["devices", "list", "--json"]);
    assert!(devices.contains(Host::External.address()), "{devices}");
    assert!(!devices.contains(CLAIMED), "{devices}");
    // The front's own address is not taken for a client's.
    assert!(!devices.contains(Host::Front.address()), "{devices}");
}

fn only_agents_are_agents(
    through: &dyn Fn(Host) -> DeviceClient,
    direct: &dyn Fn(Host) -> DeviceClient,
    local: &[String],
) {
    print_now("  an agent is paired silently, but not through the front, and the front is no agent");
    assert_eq!(direct(Host::Agent).connect().scopes(), local);
    through(Host::Agent).connect().pairing_request();
    direct(Host::Front).connect().pairing_request();
    direct(Host::Front).headers(&[("X-Forwarded-For", Host::Agent.address())]).connect().pairing_request();
}

/// Starts Caddy with docker/Caddyfile and certificates of its local CA.
fn caddy(network: &Network, program: &Path, directory: PathBuf, gateway_ca: &Path) -> Front {
    start_caddy(network, program, directory, gateway_ca, &format!("import {DOCKER}/Caddyfile\n"))
}

/// Starts a Caddy that forwards to loopgate's port for plain HTTP.
fn plain_caddy(network: &Network, program: &Path, directory: PathBuf, gateway_ca: &Path) -> Front {
    let upstream = format!("reverse_proxy http://{GATEWAY}:{PLAIN_PORT}");
    let site = format!("{SITE} {{\n\t{upstream} {{\n\t\theader_up Host {{hostport}}\n\t}}\n}}\n");
    start_caddy(network, program, directory, gateway_ca, &site)
}

fn start_caddy(network: &Network, program: &Path, directory: PathBuf, gateway_ca: &Path, site: &str) -> Front {
    fs::create_dir_all(&directory).expect("a directory");
    let configuration = directory.join("Caddyfile");
    // Caddy must not request a public certificate, nor install its local CA as trusted on this
    // machine.
    fs::write(&configuration, format!("{{\n\tlocal_certs\n\tskip_install_trust\n}}\n{site}")).expect("a file");
    let mut command = network.command(Host::Front, program);
    command.args(["run", "--config"]).arg(&configuration).env("SITE", SITE).env("HOME", &directory);
    command.env("XDG_DATA_HOME", directory.join("data")).env("XDG_CONFIG_HOME", directory.join("config"));
    Front::start(
        network,
        "Caddy",
        command,
        directory.join("data/caddy/pki/authorities/local/root.crt"),
        directory,
        gateway_ca,
    )
}

/// Makes a directory for Traefik's dynamic configuration and a certificate for `site`; returns both
/// paths.
pub fn traefik_directory(directory: &Path, site: &str) -> (PathBuf, PathBuf) {
    let dynamic = directory.join("dynamic");
    fs::create_dir_all(&dynamic).expect("a directory");
    let certified = rcgen::generate_simple_self_signed([site.to_owned()]).expect("a certificate");
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    fs::write(&certificate, certified.cert.pem()).expect("a file");
    fs::write(&key, certified.signing_key.serialize_pem()).expect("a file");
    let tls = serde_json::json!({"tls": {"certificates": [{"certFile": certificate, "keyFile": key}]}});
    fs::write(dynamic.join("tls.yaml"), tls.to_string()).expect("a file");
    (dynamic, certificate)
}

/// Starts Traefik with docker/traefik.yaml and the flags of docker/compose.traefik.yaml.
fn traefik(network: &Network, program: &Path, directory: PathBuf, gateway_ca: &Path) -> Front {
    let (dynamic, certificate) = traefik_directory(&directory, SITE);
    fs::copy(format!("{DOCKER}/traefik.yaml"), dynamic.join("traefik.yaml")).expect("docker/traefik.yaml");
    let compose = fs::read_to_string(format!("{DOCKER}/compose.traefik.yaml")).expect("docker/compose.traefik.yaml");
    let flags = compose.lines().filter_map(|line| line.trim().strip_prefix("- ")).filter(|word| word.starts_with("--"));
    let mut command = network.command(Host::Front, program);
    command.args(flags.filter(|flag| !flag.starts_with("--providers.file.")));
    command.arg(format!("--providers.file.directory={}", dynamic.display()));
    Front::start(network, "Traefik", command, certificate, directory, gateway_ca)
}

impl Front {
    /// Runs `command`, and returns once the gateway can be reached through the front.
    fn start(
        network: &Network,
        name: &str,
        mut command: Command,
        ca: PathBuf,
        directory: PathBuf,
        gateway_ca: &Path,
    ) -> Self {
        command.env("GATEWAY", URL).env("GATEWAY_CA", gateway_ca);
        let front = Self { process: Process::start(name, command, &directory.join("log")), ca, directory };
        let mut curl = front.curl(network, "/healthz");
        curl.args(["--fail", "--max-time", "2"]).stderr(Stdio::null());
        front
            .process
            .wait_until("ready", Duration::from_secs(30), || curl.status().is_ok_and(|status| status.success()));
        front
    }

    /// The curl command for a path of the public site, on the external host.
    fn curl(&self, network: &Network, path: &str) -> Command {
        let mut curl = network.command(Host::External, "curl");
        curl.args([
            "--silent",
            "--output",
            "/dev/null",
            "--resolve",
            &format!("{SITE}:443:{}", Host::Front.address()),
            "--cacert",
        ]);
        curl.arg(&self.ca).arg(format!("https://{SITE}{path}"));
        curl
    }
}

/// The program of a front, which `tests/setup/fronts.sh` installs.
pub fn program(name: &str) -> Result<PathBuf, Missing> {
    let program = cache_dir().join("fronts-1/bin").join(name);
    if program.is_file() { Ok(program) } else { Err(Missing(format!("{name} is not installed"))) }
}

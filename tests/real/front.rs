//! A public front on a host of its own, before loopgate: the real Caddy and the real Traefik, with
//! what docker/ configures them with. It may state a client's address, and nothing that a client
//! says to it may state another one.

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
use loopgate_test_support::requirements::{Missing, cache, exclusively, report};

const DOCKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docker");
/// The public name. It is in no DNS; clients are given its address.
pub const SITE: &str = "gateway.example.com";
/// The gateway's host on the bridge, and the port on which loopgate takes plain HTTP.
const GATEWAY: &str = "172.18.0.2";
const PLAIN_PORT: u16 = 18080;
/// An unused address that clients claim to have.
const CLAIMED: &str = "198.51.100.66";

#[test]
fn behind_caddy_the_gateway_knows_each_client_and_the_control_ui_works() {
    exclusively("Caddy", || {
        let modules = browser::modules()?;
        behind("caddy", caddy, &[], |network, openclaw, front| {
            report("  the Control UI connects through it after an approval");
            let url = format!("https://{SITE}");
            let home = front.directory.join("browser");
            let browser = Browser { network, openclaw, modules: &modules, url: &url, ca: &front.ca, home: &home };
            assert_eq!(browser.visit(&[&format!("--host-resolver-rules=MAP {SITE} {}", Host::Front.address())]), "h2");
        })
    });
}

#[test]
fn behind_traefik_the_gateway_knows_each_client() {
    exclusively("Traefik", || behind("traefik", traefik, &[], |_, _, _| {}));
}

#[test]
fn behind_a_caddy_that_speaks_plain_http_the_gateway_knows_each_client() {
    exclusively("Caddy, plain HTTP", || {
        let listen = format!("--listen-plain=bridge:{PLAIN_PORT}");
        behind("caddy", plain_caddy, &[&listen], |network, _, _| {
            report("  no one but the front may speak plain HTTP");
            for host in [Host::External, Host::Agent, Host::Gateway] {
                let mut curl = network.command(host, "curl");
                curl.args(["--silent", "--max-time", "5", &format!("http://{GATEWAY}:{PLAIN_PORT}/healthz")]);
                let output = curl.output().expect("curl");
                assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
            }
        })
    });
}

/// A running front, before a sidecar that trusts it.
struct Front {
    process: Process,
    /// The CA of its public certificate.
    ca: PathBuf,
    directory: PathBuf,
}

type Start = fn(&Network, &Path, PathBuf, &Path) -> Front;

fn behind(
    name: &str,
    start: Start,
    flags: &[&str],
    further: impl FnOnce(&Network, &OpenClaw, &Front),
) -> Result<(), Missing> {
    let directory = directory(name);
    let program = program(name)?;
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, "2026.9.6", &directory)?.allow_origin(&format!("https://{SITE}"));
    let _gateway = openclaw.start(&["127.0.0.2"]);
    // Should an operator take the front for an agent as well, it is still none: it speaks for others.
    let address = Host::Front.address();
    let trusting = ["--trusted-proxy", address, "--agent-cidr", address];
    let sidecar = sidecar::start(&network, &directory, &[&trusting, flags].concat());
    let front = start(&network, &program, directory.join("front"), &sidecar.ca());
    let through = |host| openclaw.client(host, &format!("wss://{SITE}")).at(Host::Front.address()).ca(&front.ca);
    let direct = |host| openclaw.client(host, WS_URL).ca(&sidecar.ca());
    let local = openclaw.client(Host::Gateway, LOOPBACK).connect().scopes();

    others_need_approval(&openclaw, &through, &local, &directory.join("external-device.json"));
    plain_http_passes(&network, &front);
    forgeries_change_nothing(&through);
    nobody_has_the_address_that_they_claim(&openclaw, &[&through, &direct]);
    only_agents_are_agents(&through, &direct, &local);
    further(&network, &openclaw, &front);
    sidecar.stop();
    Ok(())
}

fn plain_http_passes(network: &Network, front: &Front) {
    report("  the page and the tools of its HTTP side answer over h1 and h2, and ask for the token");
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

fn forgeries_change_nothing(through: &dyn Fn(Host) -> DeviceClient) {
    report("  whatever anyone says about themselves, they have to wait for an approval");
    for headers in FORGERIES {
        report(format_args!("    {headers:?}"));
        match through(Host::External).headers(headers).connect() {
            // Another site than the front's: it need not even ask loopgate.
            End::Refused { .. } if headers.iter().any(|(name, _)| *name == "Host") => {}
            end => drop(end.pairing_request()),
        }
    }
}

fn nobody_has_the_address_that_they_claim(openclaw: &OpenClaw, ways: &[&dyn Fn(Host) -> DeviceClient]) {
    report("  a claimed address never reaches the gateway, neither through the front nor past it");
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
    // Nor is the front taken for its clients.
    assert!(!devices.contains(Host::Front.address()), "{devices}");
}

fn only_agents_are_agents(
    through: &dyn Fn(Host) -> DeviceClient,
    direct: &dyn Fn(Host) -> DeviceClient,
    local: &[String],
) {
    report("  an agent is paired silently, but not through the front, and the front is no agent");
    assert_eq!(direct(Host::Agent).connect().scopes(), local);
    through(Host::Agent).connect().pairing_request();
    direct(Host::Front).connect().pairing_request();
    direct(Host::Front).headers(&[("X-Forwarded-For", Host::Agent.address())]).connect().pairing_request();
}

/// docker/Caddyfile, with certificates of Caddy's own.
fn caddy(network: &Network, program: &Path, directory: PathBuf, gateway_ca: &Path) -> Front {
    run_caddy(network, program, directory, gateway_ca, &format!("import {DOCKER}/Caddyfile\n"))
}

/// A Caddy that speaks plain HTTP to loopgate.
fn plain_caddy(network: &Network, program: &Path, directory: PathBuf, gateway_ca: &Path) -> Front {
    let upstream = format!("reverse_proxy http://{GATEWAY}:{PLAIN_PORT}");
    let site = format!("{SITE} {{\n\t{upstream} {{\n\t\theader_up Host {{hostport}}\n\t}}\n}}\n");
    run_caddy(network, program, directory, gateway_ca, &site)
}

fn run_caddy(network: &Network, program: &Path, directory: PathBuf, gateway_ca: &Path, site: &str) -> Front {
    fs::create_dir_all(&directory).expect("a directory");
    let configuration = directory.join("Caddyfile");
    // Nothing may be asked of a public authority, and Caddy's own must not become one that this machine trusts.
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

/// Makes a directory for Traefik's dynamic configuration, with a certificate for `site`; returns both paths.
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

/// docker/traefik.yaml and the command of docker/compose.traefik.yaml, with a certificate.
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
    /// Comes back when the gateway answers through it.
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

    /// curl on the external host, for a path of the public site.
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

/// A front that `tests/setup/fronts.sh` has installed.
pub fn program(name: &str) -> Result<PathBuf, Missing> {
    let program = cache().join("fronts-1/bin").join(name);
    if program.is_file() { Ok(program) } else { Err(Missing(format!("{name} is not installed"))) }
}

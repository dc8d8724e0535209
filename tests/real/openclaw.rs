//! The lanes at the real gateway, with the oldest and the newest version that loopgate supports:
//! agents are paired silently, and every other client has to wait for an approval, whatever headers
//! it sends.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use loopgate::config::Config;
use loopgate::lane::LanePolicy;

use crate::gateway::{LOOPBACK, OpenClaw, TOKEN};
use crate::sidecar::{self, URL, WS_URL};
use loopgate_test_support::device_client::{DeviceClient, End};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};

/// Headers that a client could send to be treated as local. Each row is one attempt.
pub const FORGERIES: &[&[(&str, &str)]] = &[
    &[("X-Forwarded-For", "127.0.0.1")],
    &[("x-forwarded-for", "::1, 127.0.0.1")],
    &[("X_Forwarded_For", "127.0.0.1")],
    &[("X-Forwarded-For", "")],
    &[("Forwarded", "for=127.0.0.1;host=localhost;proto=http")],
    &[("X-Real-IP", "127.0.0.1")],
    &[("X-Forwarded-Host", "localhost")],
    &[("X-Forwarded-Proto", "http")],
    &[("X-Forwarded-Port", "18789"), ("X-Forwarded-Server", "localhost")],
    &[("X-Forwarded-User", "admin@example.com")],
    &[("Via", "1.1 localhost")],
    &[("True-Client-IP", "127.0.0.1"), ("CF-Connecting-IP", "127.0.0.1")],
    &[("Tailscale-User-Login", "admin@example.com"), ("Tailscale-User-Name", "Admin")],
    &[("X-OpenClaw-Scopes", "operator.admin")],
    &[("Host", "localhost")],
    &[("Host", "127.0.0.1:18789")],
    &[("Host", "gateway.tailnet.ts.net")],
    &[("Connection", "Upgrade, X-Forwarded-For")],
    &[("Connection", "Upgrade, x-forwarded-for, x-forwarded-proto, x-forwarded-host, host")],
    &[
        ("Host", "localhost"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("Connection", "Upgrade, X-Forwarded-For"),
    ],
];

/// The forgeries that HTTP/2 can express.
const FORGERIES_OVER_H2: &[&[(&str, &str)]] = &[
    &[],
    &[("x-forwarded-for", "127.0.0.1")],
    &[("x_forwarded_for", "127.0.0.1"), ("forwarded", "for=127.0.0.1"), ("x-real-ip", "127.0.0.1")],
];

#[test]
fn every_forged_header_is_one_of_a_product_and_reserved() {
    let real = include_str!("../../src/lane/reserved_headers/tests.rs").to_ascii_lowercase();
    let policy = LanePolicy::new(&Config::default());
    for (name, _) in FORGERIES.iter().chain(FORGERIES_OVER_H2).copied().flatten() {
        if !["host", "connection"].contains(&name.to_ascii_lowercase().as_str()) {
            let listed = format!("(\"{}\",", name.to_ascii_lowercase().replace('_', "-"));
            assert!(real.contains(&listed), "{name} is a header of no product");
            assert!(policy.controls_header(&name.parse().expect("a name")), "{name} is not reserved");
        }
    }
}

#[test]
fn openclaw_2026_2_19_pairs_agents_silently_and_others_after_an_approval() {
    run_exclusively("real", "OpenClaw 2026.2.19", || check_lanes("2026.2.19"));
}

#[test]
fn openclaw_2026_9_6_pairs_agents_silently_and_others_after_an_approval() {
    run_exclusively("real", "OpenClaw 2026.9.6", || check_lanes("2026.9.6"));
}

/// Makes an empty directory for the test `test`. The files are kept, so that a failure can be
/// examined.
pub fn directory(test: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("a directory in the target directory");
    directory
}

fn check_lanes(version: &'static str) -> Result<(), Missing> {
    let directory = directory(&format!("openclaw-{version}"));
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, version, &directory)?;
    let gateway = openclaw.start(&["127.0.0.2"]);
    let sidecar = sidecar::start(&network, &directory, &[]);
    let ca = sidecar.ca_file();
    let through = |host| openclaw.client(host, WS_URL).ca(&ca);
    let local = openclaw.client(Host::Gateway, LOOPBACK).connect().scopes();

    agents_are_local(&through, &local);
    others_need_approval(&openclaw, &through, &local, &directory.join("external-device.json"));
    forged_headers_change_nothing(&through);
    wrong_tokens_are_refused(&through);
    http_requests_pass(&network, &ca);
    own_addresses_are_external(&openclaw, &through);
    sidecar.stop();

    let sidecar = sidecar::start(&network, &directory, &["--own-addresses", "agent"]);
    own_addresses_are_agents(&openclaw, &through, &local);

    print_now("  the gateway restarts without trustedProxies; the sidecar stays");
    gateway.stop(Duration::from_secs(30));
    drop(gateway);
    let _gateway = openclaw.start(&[]);
    nothing_becomes_local_without_trust(&through, &local);
    sidecar.stop();
    Ok(())
}

fn agents_are_local(through: &dyn Fn(Host) -> DeviceClient, local: &[String]) {
    print_now("  an agent is paired silently, with the scopes of a local client");
    assert_eq!(through(Host::Agent).connect().scopes(), local);
    assert_eq!(through(Host::Agent).over_h2().connect().scopes(), local);
    // An agent's own headers don't change its lane.
    assert_eq!(
        through(Host::Agent)
            .headers(&[("X-Forwarded-For", "203.0.113.7"), ("Host", "gateway.example")])
            .connect()
            .scopes(),
        local
    );
    // A browser page in an agent's container is not the agent.
    through(Host::Agent).headers(&[("Origin", "https://172.18.0.2:18789")]).connect().pairing_request();
}

pub fn others_need_approval(
    openclaw: &OpenClaw,
    through: &dyn Fn(Host) -> DeviceClient,
    local: &[String],
    device: &Path,
) {
    print_now("  every other client has to wait for `openclaw devices approve`, and works after it");
    let external = || through(Host::External).identity(device);
    let request = external().connect().pairing_request();
    assert!(
        openclaw.run(&["devices", "list", "--json"]).contains(Host::External.address()),
        "the operator does not see who asks"
    );
    openclaw.approve(&request);
    assert_eq!(external().connect().scopes(), local);
    let called = external().call("sessions.list").connect();
    assert!(matches!(&called, End::Hello { called: Some(answer), .. } if answer["ok"] == true), "{called:?}");
}

fn forged_headers_change_nothing(through: &dyn Fn(Host) -> DeviceClient) {
    print_now("  every other client needs an approval, whatever headers it sends");
    for headers in FORGERIES {
        print_now(format_args!("    {headers:?}"));
        through(Host::External).headers(headers).connect().pairing_request();
        // A client without a device can't be approved: the token alone permits nothing.
        through(Host::External)
            .headers(headers)
            .without_device()
            .claiming_to_be_the_backend()
            .call("sessions.list")
            .connect()
            .may_not_read();
    }
    for headers in FORGERIES_OVER_H2 {
        print_now(format_args!("    over h2: {headers:?}"));
        through(Host::External).over_h2().headers(headers).connect().pairing_request();
    }
}

fn wrong_tokens_are_refused(through: &dyn Fn(Host) -> DeviceClient) {
    print_now("  a wrong token is refused on both lanes");
    through(Host::Agent).token("wrong").connect().token_refused();
    through(Host::External).token("wrong").connect().token_refused();
}

fn http_requests_pass(network: &Network, ca: &Path) {
    print_now("  the page and the HTTP API answer over h1 and h2, and the API requires the token");
    let token = format!("authorization: Bearer {TOKEN}");
    let invoke = ["--json", r#"{"tool": "sessions_list", "args": {}}"#];
    for host in [Host::Agent, Host::External] {
        for protocol in ["--http1.1", "--http2"] {
            let status = |path: &str, arguments: &[&str]| {
                let mut curl = network.command(host, "curl");
                curl.args([
                    "--silent",
                    "--show-error",
                    "--output",
                    "/dev/null",
                    "--write-out",
                    "%{http_code}",
                    protocol,
                    "--cacert",
                ])
                .arg(ca);
                let output = curl.args(arguments).arg(format!("{URL}{path}")).output().expect("curl");
                assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            assert_eq!(status("/", &[]), "200", "{host:?} {protocol}");
            assert_eq!(
                status("/tools/invoke", &[&invoke[..], &["--header", &token]].concat()),
                "200",
                "{host:?} {protocol}"
            );
            // The request has no body, because the gateway would respond before reading it. RFC
            // 9113 section 8.1 allows that, but curl 7.88 treats it as a broken stream.
            assert_eq!(status("/tools/invoke", &["--request", "POST"]), "401", "{host:?} {protocol}");
        }
    }
}

/// OpenClaw issue #30740: sub-agents in the gateway's own container that use its bridge address.
fn own_addresses_are_agents(openclaw: &OpenClaw, through: &dyn Fn(Host) -> DeviceClient, local: &[String]) {
    print_now("  #30740: in the gateway's namespace, wss://172.18.0.2 is paired silently with `--own-addresses agent`");
    assert_eq!(through(Host::Gateway).connect().scopes(), local);
    assert_eq!(openclaw.client(Host::Gateway, LOOPBACK).connect().scopes(), local);
    through(Host::External).connect().pairing_request();
}

fn own_addresses_are_external(openclaw: &OpenClaw, through: &dyn Fn(Host) -> DeviceClient) {
    print_now("  #30740: in the gateway's namespace, wss://172.18.0.2 is external by default");
    through(Host::Gateway).connect().pairing_request();
    openclaw.client(Host::Gateway, LOOPBACK).connect().scopes();
}

/// A gateway without `trustedProxies` refuses external clients; it does not treat them as local.
fn nothing_becomes_local_without_trust(through: &dyn Fn(Host) -> DeviceClient, local: &[String]) {
    print_now("  without trustedProxies no client of the external lane is local");
    for headers in FORGERIES {
        print_now(format_args!("    {headers:?}"));
        let with_device = through(Host::External).headers(headers);
        let without = through(Host::External)
            .headers(headers)
            .without_device()
            .claiming_to_be_the_backend()
            .call("sessions.list");
        for end in [with_device.connect(), without.connect()] {
            match end {
                // The newer version refuses forwarded requests of a proxy that it doesn't trust.
                End::Refused { status: 403, body } => assert!(body.contains("proxy_attribution_required"), "{body}"),
                End::Hello { .. } => end.may_not_read(),
                end => drop(end.pairing_request()),
            }
        }
    }
    assert_eq!(through(Host::Agent).connect().scopes(), local);
}

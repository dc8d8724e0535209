//! `loopgate check` with a real gateway that is configured wrongly: it reports what is wrong, and
//! the printed remedies, applied as they are, make the gateway work.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::{LOOPBACK, OpenClaw, TOKEN};
use crate::openclaw::directory;
use crate::sidecar::{self, WS_URL};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::process::Process;
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};

#[test]
fn check_leads_from_issue_30740_to_a_working_set_up_on_openclaw_2026_2_19() {
    run_exclusively("real", "check, OpenClaw 2026.2.19", || from_failing_to_working("2026.2.19"));
}

#[test]
fn check_leads_from_issue_30740_to_a_working_set_up_on_openclaw_2026_9_6() {
    run_exclusively("real", "check, OpenClaw 2026.9.6", || from_failing_to_working("2026.9.6"));
}

fn from_failing_to_working(version: &'static str) -> Result<(), Missing> {
    let directory = directory(&format!("check-{version}"));
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, version, &directory)?;
    let check = |arguments: &[&str]| {
        let mut command = network.command(Host::Gateway, env!("CARGO_BIN_EXE_loopgate"));
        command
            .args(["check", "--json", "--docker", "off", "--state-dir"])
            .arg(directory.join("loopgate/state"))
            .args(arguments);
        Checked::run(command)
    };
    let configuration = openclaw.configuration();
    let file = ["--openclaw-config", configuration.to_str().expect("UTF-8")];
    let auth = json!({"mode": "token", "token": TOKEN});

    print_now("  without a gateway");
    assert!(check(&[]).ids().contains(&"gateway-down"));

    print_now("  the failing configuration of the issue: bind lan, and TLS");
    let config = json!({"gateway": {"mode": "local", "port": 18789, "bind": "lan",
        "tls": {"enabled": true, "autoGenerate": true}, "auth": auth}});
    let gateway = openclaw.launch(&config);
    let checked = check_started(&check);
    assert!(!checked.success);
    assert_eq!(checked.errors(), ["gateway-exposed", "gateway-tls"], "{:#}", checked.report);
    let checked = check(&file);
    assert_eq!(checked.errors(), ["gateway-exposed", "gateway-tls", "trusted-proxies-missing"], "{:#}", checked.report);
    let repaired = checked.applied_to(config);
    print_now("  a sidecar before this gateway reports it too");
    a_sidecar_reports_tls(&network, &directory);
    drop(gateway);

    print_now("  bind lan without TLS: exposed, and trusts no proxy");
    let config = json!({"gateway": {"mode": "local", "port": 18789, "bind": "lan", "auth": auth}});
    let gateway = openclaw.launch(&config);
    let checked = check_started(&check);
    assert_eq!(checked.errors(), ["gateway-exposed", "trusted-proxies-missing"], "{:#}", checked.report);
    let also_repaired = checked.applied_to(config);
    drop(gateway);

    print_now("  trustedProxies with 127.0.0.1, which is often advised");
    let config_of = |trusted: &[&str]| {
        let gateway =
            json!({"mode": "local", "port": 18789, "bind": "loopback", "auth": auth, "trustedProxies": trusted});
        json!({"gateway": gateway})
    };
    let config = config_of(&["127.0.0.1", "::1", "172.18.0.0/16"]);
    let gateway = openclaw.launch(&config);
    let checked = check_started(&check);
    // The newer version recognizes local clients even if it trusts 127.0.0.1.
    let old = version == "2026.2.19";
    let expected: &[&str] =
        if old { &["trusted-proxies-loopback", "trusted-proxies-missing"] } else { &["trusted-proxies-missing"] };
    assert_eq!(checked.errors(), expected, "{:#}", checked.report);
    // Trust in the bridge's network includes the gateway's own address in it.
    assert!(checked.ids().contains(&"trusted-proxies-wide"), "{:#}", checked.report);
    assert_eq!(checked.applied_to(config)["gateway"]["trustedProxies"], repaired["gateway"]["trustedProxies"]);
    drop(gateway);

    if !old {
        print_now("  all of loopback, which the OpenClaw operator sets, and which works there");
        all_of_loopback_works(&network, &openclaw, &directory, &config_of(&["127.0.0.0/8"]), &check, &file);
    }

    print_now("  repaired with the printed remedies");
    for key in ["bind", "trustedProxies"] {
        assert_eq!(repaired["gateway"][key], also_repaired["gateway"][key]);
    }
    let _gateway = openclaw.launch(&repaired);
    let checked = check_started(&check);
    assert_eq!(checked.errors(), [""; 0], "{:#}", checked.report);
    let checked = check(&file);
    assert_eq!(checked.errors(), [""; 0]);
    assert_eq!(checked.ids().contains(&"own-device-unknown"), old, "{:#}", checked.report);
    if old {
        the_gateways_own_device_gets_approved(&network, &openclaw, &directory, &|| {
            let checked = check(&file);
            assert!(!checked.success && checked.errors() == ["own-device-unpaired"], "{:#}", checked.report);
        });
        assert!(!check(&file).ids().iter().any(|id| id.starts_with("own-device")));
    }
    // `openclaw health` needs the scopes that a sub-agent needs.
    openclaw.run(&["health"]);

    print_now("  with the sidecar only two findings are left, which are no errors");
    let sidecar = sidecar::start(&network, &directory, &[]);
    let checked = check(&file);
    assert_eq!(checked.ids(), ["setup-code-url", "http-api-open"], "{:#}", checked.report);
    assert!(checked.success);

    print_now("  the set-up works: an agent is accepted, and other clients need an approval");
    let ca = sidecar.ca_file();
    assert!(openclaw.client(Host::Agent, WS_URL).ca(&ca).connect().scopes().contains(&"operator.admin".to_owned()));
    openclaw.client(Host::External, WS_URL).ca(&ca).connect().pairing_request();

    print_now("  a name for browsers, which the newer version needs in its configuration");
    let checked = check(&["--tls-name", "gateway.example.com", "--openclaw-config", file[1]]);
    let is_new = version != "2026.2.19";
    assert_eq!(checked.ids().contains(&"origin-not-allowed"), is_new, "{:#}", checked.report);
    assert!(checked.ids().contains(&"certificate-names"), "{:#}", checked.report);
    if is_new {
        let allowed = &checked.applied_to(repaired)["gateway"]["controlUi"]["allowedOrigins"];
        assert_eq!(*allowed, json!(["https://gateway.example.com:18443"]));
    }
    sidecar.stop();
    setup_codes_lead_to_loopgate(&openclaw);
    assert!(!check(&file).ids().contains(&"setup-code-url"));
    Ok(())
}

/// A gateway on loopback makes setup codes for phones only once `publicUrl` is set to loopgate's
/// URL. Without it, the gateway advises `bind=lan`, which would bypass loopgate.
fn setup_codes_lead_to_loopgate(openclaw: &OpenClaw) {
    print_now("  setup codes for phones, which need loopgate's URL");
    let qr = || {
        let output = openclaw.output(&["qr", "--json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let (success, text) = qr();
    assert!(
        !success && text.contains("Set gateway.bind=lan") && text.contains("device-pair.config.publicUrl"),
        "{text}"
    );
    let (key, url) = ("plugins.entries.device-pair.config.publicUrl", "https://gateway.example.com:18789");
    openclaw.run(&["config", "set", key, url]);
    let (success, text) = qr();
    assert!(success && text.contains("wss://gateway.example.com:18789"), "{text}");
}

/// Trust in all of loopback is wider than necessary, but both lanes work.
fn all_of_loopback_works(
    network: &Network,
    openclaw: &OpenClaw,
    directory: &Path,
    config: &Value,
    check: &dyn Fn(&[&str]) -> Checked,
    file: &[&str],
) {
    let _gateway = openclaw.launch(config);
    check_started(check);
    openclaw.run(&["health"]);
    let checked = check(file);
    assert!(checked.errors().is_empty() && checked.ids().contains(&"trusted-proxies-wide"), "{:#}", checked.report);
    let sidecar = sidecar::start(network, directory, &[]);
    let ca = sidecar.ca_file();
    assert!(openclaw.client(Host::Agent, WS_URL).ca(&ca).connect().scopes().contains(&"operator.admin".to_owned()));
    openclaw.client(Host::External, WS_URL).ca(&ca).connect().pairing_request();
    sidecar.stop();
}

/// A sidecar whose gateway uses TLS is not ready. Its healthcheck, its log and its responses name
/// the key to change.
fn a_sidecar_reports_tls(network: &Network, directory: &Path) {
    const KEY: &str = "gateway.tls.enabled";
    let loopgate = |arguments: &[&str]| {
        let mut command = network.command(Host::Gateway, env!("CARGO_BIN_EXE_loopgate"));
        command.args(arguments);
        command
    };
    let mut run = loopgate(&["run", "--docker", "off", "--state-dir"]);
    run.arg(directory.join("tls-sidecar"));
    let sidecar = Process::start("loopgate", run, &directory.join("tls-sidecar.log"));
    let healthcheck = || loopgate(&["healthcheck"]).output().expect("loopgate");
    sidecar.wait_until("healthcheck names the key", Duration::from_secs(30), || {
        String::from_utf8_lossy(&healthcheck().stderr).contains(KEY)
    });
    assert!(!healthcheck().status.success());
    let mut curl = network.command(Host::External, "curl");
    let answer = curl.args(["-sk", "-w", "%{http_code}", "https://172.18.0.2:18443/"]).output().expect("curl").stdout;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains(KEY) && answer.ends_with("502"), "{answer}");
    assert!(sidecar.output().contains(KEY), "{}", sidecar.output());
}

/// Repeats the check until the gateway has started, and returns the first result after that.
fn check_started(check: &dyn Fn(&[&str]) -> Checked) -> Checked {
    let start = Instant::now();
    loop {
        let checked = check(&[]);
        if !checked.ids().iter().any(|id| ["gateway-down", "gateway-starting", "gateway-unknown"].contains(id)) {
            return checked;
        }
        assert!(start.elapsed() < Duration::from_secs(180), "the gateway does not start: {:#}", checked.report);
    }
}

/// After a failed spawn the gateway's own device is paired for its first scope only, and its
/// request for the next scope waits, because no paired device may approve it. The command that
/// `loopgate pair` prints resolves this, and `pair --approve` approves without help.
///
/// Calls `while_stuck` while the request waits.
fn the_gateways_own_device_gets_approved(
    network: &Network,
    openclaw: &OpenClaw,
    directory: &Path,
    while_stuck: &dyn Fn(),
) {
    print_now("  the gateway's own device, whose request no paired device may approve");
    let own = openclaw.configuration().with_file_name("identity/device.json");
    let token = directory.join("token");
    std::fs::write(&token, TOKEN).expect("a token");
    let client = || openclaw.client(Host::Gateway, LOOPBACK).identity(&own);
    client().asking_for(&["operator.admin"]).connect().scopes();
    let request = client().asking_for(&["operator.write"]).connect().pairing_request();
    while_stuck();
    let pair = |arguments: &[&str]| {
        let mut command = network.command(Host::Gateway, env!("CARGO_BIN_EXE_loopgate"));
        let output = command
            .args(["pair", "--identity"])
            .arg(&own)
            .arg("--token-file")
            .arg(&token)
            .args(arguments)
            .output()
            .expect("loopgate");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };

    print_now("    `loopgate pair` names the scopes and the command that approves them");
    let (success, text) = pair(&[]);
    let command = format!("OPENCLAW_STATE_DIR=/tmp/fresh openclaw devices approve {request}");
    assert!(!success && text.contains("to be approved for operator.write") && text.contains(&command), "{text}");
    let approved = openclaw.run_as_new_device(&["devices", "approve", &request]);
    assert!(approved.status.success(), "{}", String::from_utf8_lossy(&approved.stderr));

    print_now("    `loopgate pair --approve` needs no human");
    let (success, text) = pair(&["--wait", "--approve"]);
    assert!(success, "{text}");
    let (success, text) = pair(&[]);
    assert!(success, "the device is not paired: {text}");
    let listed: Value = serde_json::from_str(&openclaw.run(&["devices", "list", "--json"])).expect("JSON");
    let paired = listed["paired"].as_array().expect("devices");
    // Two devices: the gateway's own, and that of `run_as_new_device`. The device that `--approve`
    // used was removed.
    assert_eq!(paired.len(), 2, "{listed:#}");
    assert_eq!(listed["pending"].as_array().map(Vec::len), Some(0), "{listed:#}");
}

/// The result of `loopgate check --json`.
struct Checked {
    success: bool,
    report: Value,
}

impl Checked {
    fn run(mut command: Command) -> Self {
        let output = command.output().expect("loopgate");
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        Self { success: output.status.success(), report }
    }

    fn findings(&self) -> impl Iterator<Item = &Value> {
        self.report["findings"].as_array().into_iter().flatten()
    }

    fn ids(&self) -> Vec<&str> {
        self.findings().filter_map(|finding| finding["id"].as_str()).collect()
    }

    /// The ids of the findings that are errors, in alphabetical order.
    fn errors(&self) -> Vec<&str> {
        let errors = self.findings().filter(|finding| finding["severity"] == "error");
        let mut ids: Vec<&str> = errors.filter_map(|finding| finding["id"].as_str()).collect();
        ids.sort_unstable();
        ids
    }

    /// Returns `config`, a gateway's configuration, with each printed remedy for it applied.
    fn applied_to(&self, mut config: Value) -> Value {
        for remedy in self.findings().map(|finding| &finding["remedy"]).filter(|remedy| remedy["in"] == "openclaw.json")
        {
            let path = format!("/{}", remedy["key"].as_str().expect("a key").replace('.', "/"));
            let (parents, last) = path.rsplit_once('/').expect("a path");
            let parent = parents.split('/').skip(1).fold(&mut config, |value, key| &mut value[key]);
            parent[last] = remedy["value"].clone();
        }
        config
    }
}

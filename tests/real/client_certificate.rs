//! Sign-in by client certificate: a gateway with `auth.mode: "trusted-proxy"`, which accepts the
//! user name in loopgate's header.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::{LOOPBACK, OpenClaw, SPAWN_TOOL};
use crate::openclaw::{FORGERIES, directory};
use crate::sidecar::{self, URL, WS_URL};
use loopgate_test_support::device_client::{DeviceClient, End};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};
use loopgate_test_support::sidecar::loopgate;

/// The gateway's password for local clients.
const PASSWORD: &str = "the-password-of-the-tests";
/// The password of the PKCS#12 files.
const FILE_PASSWORD: &str = "correct horse battery";
/// The requested scopes that `deviceAutoApprove` grants by default.
const GRANTED: [&str; 4] = ["operator.approvals", "operator.questions", "operator.read", "operator.write"];

/// The gateway's configuration that docs/openclaw.md describes.
fn configuration() -> Value {
    json!({"gateway": {
        "mode": "local", "port": 18789, "bind": "loopback", "trustedProxies": ["127.0.0.2"],
        "tools": {"allow": [SPAWN_TOOL]},
        "auth": {"mode": "trusted-proxy", "password": PASSWORD, "trustedProxy": {
            "userHeader": "x-forwarded-user", "allowLoopback": true, "allowUsers": ["alice@example.com"],
            "deviceAutoApprove": {"enabled": true},
        }},
    }})
}

#[test]
fn a_client_with_a_users_certificate_is_signed_in_and_approved() {
    run_exclusively("real", "sign-in by certificate, OpenClaw 2026.9.6", sign_in);
}

#[test]
fn openclaw_2026_2_19_has_no_trusted_proxy_mode_on_loopback() {
    run_exclusively("real", "trusted-proxy mode on OpenClaw 2026.2.19", || {
        let directory = directory("sign-in-2026.2.19");
        let network = Network::new()?;
        let openclaw = OpenClaw::new(&network, "2026.2.19", &directory)?;
        let mut config = configuration();
        config["gateway"]["auth"]["trustedProxy"] = json!({"userHeader": "x-forwarded-user"});
        let gateway = openclaw.launch(&config);
        gateway.wait_for_log_blocking("makes no sense with bind=loopback");
        Ok(())
    });
}

/// Issues a certificate for `user` into the PKCS#12 file `file`; returns its serial number.
fn issue(state: &Path, user: &str, file: &Path) -> String {
    let password = file.with_extension("password");
    fs::write(&password, FILE_PASSWORD).expect("a file");
    let mut command = loopgate(["cert", "issue", "--user", user]);
    command.arg("--state-dir").arg(state).arg("--out").arg(file).arg("--password-file").arg(&password);
    let output = command.output().expect("loopgate");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let description = String::from_utf8_lossy(&output.stdout).into_owned();
    description.lines().find_map(|line| line.trim().strip_prefix("serial ")).expect("a serial number").trim().to_owned()
}

fn sign_in() -> Result<(), Missing> {
    let directory = directory("sign-in-2026.9.6");
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, "2026.9.6", &directory)?;
    let gateway = openclaw.launch(&configuration());
    let local = || openclaw.client(Host::Gateway, LOOPBACK).password(PASSWORD);
    gateway.wait_until("ready", Duration::from_secs(180), || matches!(local().connect(), End::Hello { .. }));

    let state = directory.join("loopgate/state");
    let (alice_file, bob_file) = (directory.join("alice.p12"), directory.join("bob.p12"));
    let serial = issue(&state, "alice@example.com", &alice_file);
    issue(&state, "bob@example.com", &bob_file);
    let own_ca = format!("--client-ca={}", state.join("ca.pem").display());
    let sidecar = sidecar::start(&network, &directory, &[&own_ca]);
    let ca = sidecar.ca_file();
    let through = |host| openclaw.client(host, WS_URL).ca(&ca).without_secret();
    let build =
        match through(Host::External).control_ui(URL, "unknown").certificate(&alice_file, FILE_PASSWORD).connect() {
            End::Closed { error: Some(error), .. } => {
                error["details"]["gatewayBuildId"].as_str().expect("a build").to_owned()
            }
            end => panic!("expected a refusal that names the gateway's build, but {end:?}"),
        };
    let page = |client: DeviceClient| client.control_ui(URL, &build);
    let alice = || page(through(Host::External)).certificate(&alice_file, FILE_PASSWORD);

    print_now("  the device of a client with a certificate is approved, over both protocols, and may call methods");
    let device = directory.join("alice-device.json");
    assert_eq!(alice().identity(&device).connect().scopes(), GRANTED);
    assert_eq!(alice().identity(&device).over_h2().connect().scopes(), GRANTED);
    let called = alice().identity(&device).call("sessions.list").connect();
    assert!(matches!(&called, End::Hello { called: Some(answer), .. } if answer["ok"] == true), "{called:?}");

    print_now("  a client without a certificate, or with that of a user who is not in allowUsers, is refused");
    let name = [("Origin", URL), ("X-Forwarded-User", "alice@example.com")];
    through(Host::External).control_ui(URL, &build).connect().token_refused();
    through(Host::External).control_ui(URL, &build).headers(&name).connect().token_refused();
    through(Host::External).control_ui(URL, &build).password(PASSWORD).connect().token_refused();
    for headers in FORGERIES {
        through(Host::External)
            .control_ui(URL, &build)
            .headers(&[headers, &name[..]].concat())
            .connect()
            .not_accepted();
    }
    page(through(Host::External)).certificate(&bob_file, FILE_PASSWORD).connect().token_refused();

    print_now("  sub-agents, agents and the gateway's own clients work as before, with its password");
    openclaw.assert_spawns(PASSWORD);
    let scopes = local().connect().scopes();
    assert_eq!(through(Host::Agent).password(PASSWORD).connect().scopes(), scopes);
    assert_eq!(
        through(Host::Agent).password(PASSWORD).certificate(&alice_file, FILE_PASSWORD).connect().scopes(),
        scopes
    );
    through(Host::Agent).headers(&name[1..]).connect().token_refused();
    assert!(
        openclaw.run(&["devices", "list", "--json"]).contains("openclaw-control-ui"),
        "Alice's device is not listed"
    );

    print_now("  a revoked certificate is refused");
    let revoked =
        loopgate(["cert", "revoke", "--serial", &serial]).arg("--state-dir").arg(&state).output().expect("loopgate");
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    gateway.wait_until("refused", Duration::from_secs(30), || matches!(alice().connect(), End::Failed { .. }));
    sidecar.stop();
    Ok(())
}

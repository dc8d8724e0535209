//! The gateway's Control UI in Chromium, through the external lane. The sidecar's CA is in
//! Chromium's NSS database, where an operator would put it, and Chromium verifies the certificate
//! itself.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::gateway::{OpenClaw, TOKEN};
use crate::openclaw::directory;
use crate::sidecar::{self, URL};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::requirements::{Missing, find_program, node_modules, print_now, run_exclusively};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/browser.mjs");

#[test]
fn the_control_ui_of_2026_2_19_connects_after_an_approval_over_h1_and_h2() {
    run_exclusively("real", "the Control UI of OpenClaw 2026.2.19", || check_control_ui("2026.2.19"));
}

#[test]
fn the_control_ui_of_2026_9_6_connects_after_an_approval_over_h1_and_h2() {
    run_exclusively("real", "the Control UI of OpenClaw 2026.9.6", || check_control_ui("2026.9.6"));
}

fn check_control_ui(version: &'static str) -> Result<(), Missing> {
    let directory = directory(&format!("control-ui-{version}"));
    let modules = modules()?;
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, version, &directory)?;
    let _gateway = openclaw.start(&["127.0.0.2"]);
    let sidecar = sidecar::start(&network, &directory, &[]);

    print_now("  over h2, with the WebSocket over h2 (RFC 8441)");
    let ca = sidecar.ca_file();
    let browser = Browser {
        network: &network,
        openclaw: &openclaw,
        modules: &modules,
        url: URL,
        ca: &ca,
        home: &directory.join("h2"),
    };
    assert_eq!(browser.visit(&[]), "h2");
    assert!(browser.used_websocket_over_h2(), "Chromium opened its WebSocket over HTTP/1.1; see {}", browser.netlog());

    print_now("  over HTTP/1.1");
    let browser = Browser { home: &directory.join("h1"), ..browser };
    assert_eq!(browser.visit(&["--disable-http2"]), "http/1.1");
    assert!(!browser.used_websocket_over_h2());
    sidecar.stop();
    Ok(())
}

/// Returns the `node_modules` with Playwright, or which of Chromium, certutil and Playwright is
/// missing.
pub fn modules() -> Result<PathBuf, Missing> {
    find_program("chromium")?;
    find_program("certutil")?;
    node_modules("playwright-1.58.2")
}

/// Chromium on the external host.
pub struct Browser<'a> {
    /// The network with the external host.
    pub network: &'a Network,
    /// The gateway, at which the operator approves the browser's device.
    pub openclaw: &'a OpenClaw<'a>,
    /// See [`modules`].
    pub modules: &'a Path,
    /// The URL of the Control UI, without a path.
    pub url: &'a str,
    /// The CA certificate to add to its trusted ones.
    pub ca: &'a Path,
    /// The home directory with its profile. A new one makes the browser a device that the gateway
    /// doesn't know.
    pub home: &'a Path,
}

impl Browser<'_> {
    /// Opens the Control UI, approves its device and waits until it is connected. Returns the
    /// protocol over which the page was loaded.
    pub fn visit(&self, arguments: &[&str]) -> String {
        self.add_trusted_ca();
        let options = json!({
            "modules": self.modules, "url": format!("{}/#token={TOKEN}", self.url),
            "profile": self.home.join("profile"),
            "netlog": self.netlog(), "screenshots": self.home.join("screen"), "arguments": arguments,
        });
        let mut command = self.network.command(Host::External, self.openclaw.node());
        command
            .arg(SCRIPT)
            .arg(options.to_string())
            .env("HOME", self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut script = Script::start(command);

        let protocol = script.next("page")["protocol"].as_str().expect("a protocol").to_owned();
        let request = script.next("pairing")["request"].as_str().expect("a request id").to_owned();
        self.openclaw.approve(&request);
        script.continue_after_approval();
        let scopes = script.next("hello")["scopes"].to_string();
        assert!(scopes.contains("operator.admin"), "the Control UI was granted {scopes}");
        script.wait_for_exit();
        protocol
    }

    /// Returns whether Chromium's network log has an extended CONNECT for the WebSocket.
    fn used_websocket_over_h2(&self) -> bool {
        fs::read_to_string(self.netlog()).expect("Chromium's log").contains(":protocol: websocket")
    }

    fn netlog(&self) -> String {
        self.home.join("netlog.json").to_string_lossy().into_owned()
    }

    fn add_trusted_ca(&self) {
        let database = self.home.join(".pki/nssdb");
        fs::create_dir_all(&database).expect("a directory");
        let database = format!("sql:{}", database.display());
        certutil(&["-N", "--empty-password", "-d", &database]);
        certutil(&["-A", "-d", &database, "-n", "loopgate", "-t", "C,,", "-i", &self.ca.to_string_lossy()]);
    }
}

fn certutil(arguments: &[&str]) {
    let output = Command::new("certutil").args(arguments).output().expect("certutil");
    assert!(output.status.success(), "certutil {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The running `browser.mjs`.
struct Script {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Script {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("node");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    /// Returns the next event, which must be `expected`.
    fn next(&mut self, expected: &str) -> Value {
        let line = self.lines.next().expect("another event of browser.mjs").expect("a pipe");
        let event: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(event["saw"], expected, "{event}");
        event
    }

    /// Makes the script continue after the approval.
    fn continue_after_approval(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("a pipe"), "approved").expect("browser.mjs listens");
    }

    /// Waits until the browser has closed, because its log is incomplete before.
    fn wait_for_exit(mut self) {
        assert!(self.child.wait().expect("own child").success());
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

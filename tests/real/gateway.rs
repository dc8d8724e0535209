//! OpenClaw's gateway, from its npm package, on loopback of the gateway's host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use loopgate_test_support::device_client::{DeviceClient, End};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::process::Process;
use loopgate_test_support::requirements::{Missing, node_modules};

/// The token of the gateways in these tests.
pub const TOKEN: &str = "the-token-of-the-tests";
/// The tool that [`OpenClaw::assert_spawns`] calls over HTTP; the configuration must allow it.
pub const SPAWN_TOOL: &str = "sessions_spawn";
/// The gateway's URL on loopback, for clients on its host.
pub const LOOPBACK: &str = "ws://127.0.0.1:18789";

/// An installed version of OpenClaw and a state directory.
pub struct OpenClaw<'a> {
    network: &'a Network,
    version: &'static str,
    modules: PathBuf,
    state: PathBuf,
    allowed_origins: Vec<String>,
}

impl<'a> OpenClaw<'a> {
    /// Uses the installed `version`, with its state under `directory`.
    pub fn new(network: &'a Network, version: &'static str, directory: &Path) -> Result<Self, Missing> {
        let modules = node_modules(&format!("openclaw-{version}"))?;
        let state = directory.join("openclaw");
        fs::create_dir_all(state.join("identity")).expect("a state directory");
        Ok(Self { network, version, modules, state, allowed_origins: Vec::new() })
    }

    /// Allows pages of this origin. The gateway allows private IP addresses by default, but no host
    /// name.
    pub fn allow_origin(mut self, origin: &str) -> Self {
        self.allowed_origins.push(origin.into());
        self
    }

    /// Starts the gateway, and returns when it pairs devices. Dropping the process ends it.
    pub fn start(&self, trusted_proxies: &[&str]) -> Process {
        let mut config = serde_json::json!({"gateway": {
            "mode": "local", "port": 18789, "bind": "loopback", "auth": {"mode": "token", "token": TOKEN},
            "trustedProxies": trusted_proxies,
        }});
        if !self.allowed_origins.is_empty() {
            config["gateway"]["controlUi"] = serde_json::json!({"allowedOrigins": self.allowed_origins});
        }
        let process = self.launch(&config);
        // The gateway listens long before it pairs devices; until then it closes connections with
        // 1013 "gateway starting". The older version's own tools fail until the gateway's own
        // device is paired for all five scopes. The newer version would not start with such an
        // identity file.
        let own = self.state.join("identity/device.json");
        let client = || self.client(Host::Gateway, LOOPBACK);
        let pair = || if self.version.starts_with("2026.2.") { client().identity(&own) } else { client() }.connect();
        process.wait_until("ready", Duration::from_secs(180), || matches!(pair(), End::Hello { .. }));
        process
    }

    /// Starts the gateway with `config`, and does not wait until it is ready.
    pub fn launch(&self, config: &serde_json::Value) -> Process {
        let mut config = config.clone();
        // The newer version would download a list of models. The older version rejects this key as
        // unknown.
        if self.version.starts_with("2026.9.") {
            config["models"] = serde_json::json!({"catalogRefresh": {"enabled": false}});
        }
        fs::write(self.configuration(), config.to_string()).expect("a configuration");
        Process::start("the gateway", self.cli(&["gateway", "run"]), &self.state.with_extension("log"))
    }

    /// The path of the gateway's configuration.
    pub fn configuration(&self) -> PathBuf {
        self.state.join("openclaw.json")
    }

    /// A client of this version on `host`, with a new device, the right token and all five operator
    /// scopes.
    pub fn client(&self, host: Host, url: &str) -> DeviceClient {
        DeviceClient::new(self.network.command(host, self.node()), &self.modules, url).token(TOKEN)
    }

    /// Runs `openclaw` on the gateway's host, fails if it does, and returns its standard output.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "openclaw {}: {}\n{out}\n{err}", arguments.join(" "), output.status);
        out.into_owned()
    }

    /// Runs `openclaw` on the gateway's host, and returns its output whether it succeeds or not.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.cli(arguments).output().expect("openclaw")
    }

    /// Runs `openclaw` on the gateway's host as a new device: with an empty state directory, and
    /// the token in its environment.
    pub fn run_as_new_device(&self, arguments: &[&str]) -> Output {
        let state = self.state.with_extension("fresh");
        let mut command = self.cli(arguments);
        command
            .env("OPENCLAW_STATE_DIR", &state)
            .env_remove("OPENCLAW_CONFIG_PATH")
            .env("OPENCLAW_GATEWAY_TOKEN", TOKEN);
        command.output().expect("openclaw")
    }

    /// Runs `openclaw` on `host` with the gateway's state directory, as a container that shares it
    /// does.
    pub fn run_from(&self, host: Host, arguments: &[&str], ca: &Path) -> Output {
        let mut command = self.cli_on(host, arguments);
        command.env_remove("OPENCLAW_CONFIG_PATH").env("NODE_EXTRA_CA_CERTS", ca);
        command.output().expect("openclaw")
    }

    /// The ids of the paired devices, from `openclaw devices list`.
    pub fn paired_devices(&self) -> Vec<String> {
        let listed: serde_json::Value =
            serde_json::from_str(&self.run(&["devices", "list", "--json"])).expect("devices as JSON");
        let paired = listed["paired"].as_array().into_iter().flatten();
        paired.filter_map(|device| device["deviceId"].as_str().map(str::to_owned)).collect()
    }

    /// The gateway's state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Fails unless the gateway spawns a sub-agent. `secret` is its token or password. The
    /// configuration must allow the tool [`SPAWN_TOOL`].
    pub fn assert_spawns(&self, secret: &str) {
        let mut curl = self.network.command(Host::Gateway, "curl");
        curl.args([
            "--silent",
            "--max-time",
            "90",
            "--json",
            r#"{"tool": "sessions_spawn", "args": {"task": "say hello"}}"#,
        ]);
        curl.args(["--header", &format!("Authorization: Bearer {secret}"), "http://127.0.0.1:18789/tools/invoke"]);
        let start = Instant::now();
        loop {
            let output = curl.output().expect("curl");
            let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if answer["result"]["details"]["status"] == "accepted" {
                return;
            }
            // The newer version may answer with this text for a moment after its start.
            let starting = answer.to_string().contains("Retry the request");
            assert!(starting && start.elapsed() < Duration::from_secs(60), "{answer}");
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Approves a pairing request with `openclaw devices approve`.
    pub fn approve(&self, request: &str) {
        self.run(&["devices", "approve", request]);
    }

    fn cli(&self, arguments: &[&str]) -> Command {
        self.cli_on(Host::Gateway, arguments)
    }

    fn cli_on(&self, host: Host, arguments: &[&str]) -> Command {
        let mut command = self.network.command(host, self.node());
        command
            .arg(self.modules.join("openclaw/openclaw.mjs"))
            .args(arguments)
            .current_dir(&self.state)
            .env("HOME", &self.state)
            .env("OPENCLAW_STATE_DIR", &self.state)
            .env("OPENCLAW_CONFIG_PATH", self.configuration())
            .env("OPENCLAW_DISABLE_BONJOUR", "1")
            .env("OPENCLAW_NO_RESPAWN", "1")
            .env("NO_COLOR", "1");
        command
    }

    /// The URL path and the size in bytes of the Control UI's largest file.
    pub fn largest_page_file(&self) -> (String, u64) {
        let page = self.modules.join("openclaw/dist/control-ui");
        let files = fs::read_dir(page.join("assets")).expect("the files of the page").flatten();
        let sized = files.map(|file| (file.metadata().expect("a file").len(), file.file_name()));
        let (size, name) = sized.max().expect("a file");
        (format!("/assets/{}", name.to_string_lossy()), size)
    }

    /// The directory with this version's npm packages, which include `ws`.
    pub fn modules(&self) -> &Path {
        &self.modules
    }

    /// The Node.js that is installed with this version.
    pub fn node(&self) -> PathBuf {
        self.modules.join("node/bin/node")
    }
}

//! A client of the gateway with a device identity: `device_client.mjs`, run on a host or in a
//! container.

use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

/// The script that the client runs.
pub const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/device_client.mjs");

/// The settings of one handshake.
pub struct DeviceClient {
    node: Command,
    options: Value,
}

/// How a handshake ended.
#[derive(Debug, Deserialize)]
#[serde(tag = "end", rename_all = "lowercase")]
pub enum End {
    /// The gateway accepted the client.
    Hello {
        /// The scopes that were granted; `None` if the gateway does not state them.
        scopes: Option<Vec<String>>,
        /// The response to the method that was called, if any.
        called: Option<Value>,
        /// The device's own token, if it got one.
        #[serde(default, rename = "deviceToken")]
        device_token: Option<String>,
    },
    /// The gateway closed the WebSocket.
    Closed {
        /// The code of the close frame.
        code: u16,
        /// The reason in the close frame.
        reason: String,
        /// The gateway's response to `connect`.
        error: Option<Value>,
    },
    /// The response to the upgrade had another status than 101.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The body of the response.
        body: String,
    },
    /// The connection failed.
    Failed {
        /// The error.
        error: String,
    },
}

impl DeviceClient {
    /// A client with a fresh device, in the Node.js that `node` runs; `modules` holds the package
    /// `ws`.
    pub fn new(node: Command, modules: &Path, url: &str) -> Self {
        Self { node, options: json!({"ws": modules, "url": url, "headers": []}) }
    }

    /// Trusts this CA, and no other.
    pub fn ca(self, file: &Path) -> Self {
        self.set("ca", json!(file))
    }

    /// Presents the client certificate in this PKCS#12 file.
    pub fn certificate(self, file: &Path, password: &str) -> Self {
        self.set("pfx", json!(file)).set("passphrase", json!(password))
    }

    /// Sends neither a token nor a password.
    pub fn without_secret(mut self) -> Self {
        self.options.as_object_mut().expect("an object").remove("token");
        self
    }

    /// Claims to be the Control UI of this build, in a page from `origin`.
    pub fn control_ui(self, origin: &str, build: &str) -> Self {
        self.set("build", json!(build))
            .set("client", json!("openclaw-control-ui"))
            .set("mode", json!("webchat"))
            .headers(&[("Origin", origin)])
    }

    /// Connects to this address for the host in the URL.
    pub fn at(self, address: &str) -> Self {
        self.set("address", json!(address))
    }

    /// Sends this token.
    pub fn token(self, token: &str) -> Self {
        self.set("token", json!(token))
    }

    /// Sends this password instead of a token.
    pub fn password(self, password: &str) -> Self {
        self.set("token", json!(null)).set("password", json!(password))
    }

    /// Sends these header fields too. They replace the client's own fields of the same name.
    pub fn headers(self, headers: &[(&str, &str)]) -> Self {
        self.set("headers", json!(headers))
    }

    /// Uses HTTP/2 (RFC 8441).
    pub fn over_h2(self) -> Self {
        self.set("over", json!("h2"))
    }

    /// Uses the device in this file, which is created if it does not exist.
    pub fn identity(self, file: &Path) -> Self {
        self.set("identity", json!(file))
    }

    /// Asks for these scopes, instead of all five of an operator.
    pub fn asking_for(self, scopes: &[&str]) -> Self {
        self.set("scopes", json!(scopes))
    }

    /// Connects without a device identity.
    pub fn without_device(self) -> Self {
        self.set("identity", json!("none"))
    }

    /// Claims to be the gateway's own back end.
    pub fn claiming_to_be_the_backend(self) -> Self {
        self.set("client", json!("gateway-client")).set("mode", json!("backend"))
    }

    /// Calls a method after the gateway has accepted the client.
    pub fn call(self, method: &str) -> Self {
        self.set("call", json!(method))
    }

    /// Performs the handshake, and returns how it ended.
    pub fn connect(mut self) -> End {
        let output = self.node.arg(SCRIPT).arg(self.options.to_string()).output().expect("node");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!(
                "device_client.mjs: {error}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }

    fn set(mut self, option: &str, value: Value) -> Self {
        self.options[option] = value;
        self
    }
}

impl End {
    /// Returns the scopes of a client that was accepted without an approval.
    #[track_caller]
    pub fn scopes(self) -> Vec<String> {
        match self {
            End::Hello { scopes: Some(mut scopes), .. } => {
                scopes.sort();
                scopes
            }
            end => panic!("expected to be accepted with scopes, but {end:?}"),
        }
    }

    /// Returns the request id of a client that has to wait for an approval.
    #[track_caller]
    pub fn pairing_request(self) -> String {
        match &self {
            End::Closed { code: 1008, reason, error: Some(error) } if reason.starts_with("pairing required") => {
                error["details"]["requestId"].as_str().expect("a request id").to_owned()
            }
            end => panic!("expected `1008 pairing required`, but {end:?}"),
        }
    }

    /// Returns the device token of a client that was accepted.
    #[track_caller]
    pub fn device_token(self) -> String {
        match self {
            End::Hello { device_token: Some(token), .. } => token,
            end => panic!("expected a device token, but {end:?}"),
        }
    }

    /// Asserts that the method that was called was answered.
    #[track_caller]
    pub fn answered(self) {
        assert!(
            matches!(&self, End::Hello { called: Some(answer), .. } if answer["ok"] == true),
            "expected an answer, but {self:?}"
        );
    }

    /// Returns the reason for which loopgate closed the WebSocket.
    #[track_caller]
    pub fn refused_by_loopgate(self) -> String {
        match self {
            End::Closed { code: 1008, reason, .. } if reason.starts_with("loopgate: ") => reason,
            end => panic!("expected a refusal by loopgate, but {end:?}"),
        }
    }

    /// Asserts that `method` was not answered: the gateway accepted the client without the scope
    /// for it, or did not accept the client.
    #[track_caller]
    pub fn may_not_call(self) {
        match &self {
            End::Hello { called: Some(answer), .. } => {
                let message = answer["error"]["message"].as_str().unwrap_or_default();
                assert!(message.starts_with("missing scope: "), "expected a missing scope, but {self:?}");
            }
            End::Closed { .. } | End::Refused { .. } => {}
            End::Hello { called: None, .. } | End::Failed { .. } => panic!("expected a refusal, but {self:?}"),
        }
    }

    /// Asserts that the token was refused.
    #[track_caller]
    pub fn token_refused(self) {
        assert!(
            matches!(&self, End::Closed { code: 1008, reason, .. } if reason.starts_with("unauthorized")),
            "expected `1008 unauthorized`, but {self:?}"
        );
    }

    /// Returns whether the client was accepted.
    pub fn is_accepted(&self) -> bool {
        matches!(self, End::Hello { .. })
    }

    /// Asserts that the client was not accepted.
    #[track_caller]
    pub fn not_accepted(self) {
        assert!(matches!(self, End::Closed { .. } | End::Refused { .. }), "expected a refusal, but {self:?}");
    }

    /// Asserts that the client may not read: the gateway accepted it without that scope, or did not
    /// accept it.
    #[track_caller]
    pub fn may_not_read(self) {
        let refused = match &self {
            End::Hello { called: Some(answer), .. } => answer["error"]["message"] == "missing scope: operator.read",
            End::Closed { .. } | End::Refused { .. } => true,
            End::Hello { called: None, .. } => false,
            End::Failed { error } => panic!("no connection: {error}"),
        };
        assert!(refused, "expected a client without scopes, but {self:?}");
    }
}

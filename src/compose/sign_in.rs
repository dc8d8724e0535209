//! How the users of a gateway sign in, as its configuration file says.

use serde_json::Value;

/// What the gateway's configuration file says about how its users sign in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignIn {
    /// With a token or a password, or not at all.
    Shared,
    /// A proxy says who they are (`auth.mode: "trusted-proxy"`), in the header of this name.
    TrustedProxy(Option<String>),
}

impl SignIn {
    /// Reads it from the gateway's configuration.
    pub fn of(config: &Value) -> Self {
        let auth = &config["gateway"]["auth"];
        if auth["mode"] == "trusted-proxy" {
            Self::TrustedProxy(auth["trustedProxy"]["userHeader"].as_str().map(Into::into))
        } else {
            Self::Shared
        }
    }
}

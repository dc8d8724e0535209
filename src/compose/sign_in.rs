//! How the users of a gateway sign in, as its configuration file says.

use http::HeaderName;
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
            let header = auth["trustedProxy"]["userHeader"].as_str();
            // It is printed: nothing but a header's name may reach a terminal.
            Self::TrustedProxy(header.filter(|name| HeaderName::from_bytes(name.as_bytes()).is_ok()).map(Into::into))
        } else {
            Self::Shared
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_header_is_named_only_if_it_can_be_one() {
        let of = |header: &str| {
            SignIn::of(&json!({"gateway": {"auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": header}}}}))
        };
        assert_eq!(of("X-User"), SignIn::TrustedProxy(Some("X-User".to_owned())));
        assert_eq!(of("x\u{1b}[2J"), SignIn::TrustedProxy(None));
        assert_eq!(SignIn::of(&json!({})), SignIn::Shared);
    }
}

//! How the users of a gateway sign in, according to its configuration file.

use http::HeaderName;
use serde_json::Value;

/// How the users of a gateway sign in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignIn {
    /// Users give a token or a password, or nothing.
    Shared,
    /// A proxy authenticates users (`auth.mode: "trusted-proxy"`), and names them in this header;
    /// `None` if the configuration names no valid header.
    TrustedProxy(Option<String>),
}

impl SignIn {
    /// Reads `gateway.auth` of the gateway's configuration.
    pub fn from_config(openclaw_json: &Value) -> Self {
        let auth = &openclaw_json["gateway"]["auth"];
        if auth["mode"] == "trusted-proxy" {
            let header = auth["trustedProxy"]["userHeader"].as_str();
            // The name is printed, so it must be a valid header name, which has no control
            // characters.
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
            SignIn::from_config(
                &json!({"gateway": {"auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": header}}}}),
            )
        };
        assert_eq!(of("X-User"), SignIn::TrustedProxy(Some("X-User".to_owned())));
        assert_eq!(of("x\u{1b}[2J"), SignIn::TrustedProxy(None));
        assert_eq!(SignIn::from_config(&json!({})), SignIn::Shared);
    }
}

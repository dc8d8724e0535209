//! `POST /reload`, the request of `loopgate reload`: its checks and its outcome.

use http::header::ORIGIN;
use http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio::sync::{mpsc, oneshot};

/// The header that a request to reload must have. A web page of another origin can't send it: the
/// browser first asks for permission with OPTIONS, which the admin listener refuses.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-loopgate-reload");

/// A request to reload: the sender of its outcome.
pub type Request = oneshot::Sender<Outcome>;

/// The outcome of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The tables of the configuration in which an option changed and is in use now.
    pub applied: Vec<String>,
    /// The keys of the options that changed but need a restart.
    pub needs_restart: Vec<String>,
    /// Why the new configuration was rejected, so that the old one is still in use; `None` if it
    /// was accepted.
    pub error: Option<String>,
}

/// Creates the channel for requests to reload. It has room for one request; further ones are
/// refused.
pub fn channel() -> (mpsc::Sender<Request>, mpsc::Receiver<Request>) {
    mpsc::channel(1)
}

/// Returns why a request from `peer` with `headers` may not reload the configuration; `None` if it
/// may.
///
/// A reload only makes the sidecar read again what the operator wrote: the request names no file
/// and contains no configuration. It is still accepted only from 127.0.0.1 and `::1`, whatever
/// address the admin listener has, and never from a web page. Other addresses of 127.0.0.0/8 are
/// refused, because proxies and service meshes use them for clients from outside.
pub(super) fn why_refused(peer: IpAddr, headers: &HeaderMap) -> Option<&'static str> {
    let peer = peer.to_canonical();
    if peer != Ipv4Addr::LOCALHOST && peer != Ipv6Addr::LOCALHOST {
        return Some("reload is accepted from 127.0.0.1 and ::1 only");
    }
    if headers.contains_key(ORIGIN) || headers.keys().any(|name| name.as_str().starts_with("sec-fetch-")) {
        return Some("reload is not accepted from a web page");
    }
    if headers.get(HEADER).is_none_or(|value| value != "1") {
        return Some("reload needs the header X-Loopgate-Reload: 1");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_local_program_may_reload() {
        type Fields = &'static [(&'static str, &'static str)];
        let table: [(&str, Fields, bool); 9] = [
            ("127.0.0.1", &[("x-loopgate-reload", "1")], true),
            ("::ffff:127.0.0.1", &[("x-loopgate-reload", "1")], true),
            ("::1", &[("x-loopgate-reload", "1")], true),
            ("172.18.0.3", &[("x-loopgate-reload", "1")], false),
            ("127.0.0.6", &[("x-loopgate-reload", "1")], false),
            ("127.0.0.1", &[], false),
            ("127.0.0.1", &[("x-loopgate-reload", "0")], false),
            ("127.0.0.1", &[("x-loopgate-reload", "1"), ("origin", "http://127.0.0.1:9180")], false),
            ("127.0.0.1", &[("x-loopgate-reload", "1"), ("sec-fetch-site", "same-origin")], false),
        ];
        for (peer, fields, expected) in table {
            let headers = fields
                .iter()
                .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
                .collect();
            assert_eq!(why_refused(peer.parse().unwrap(), &headers).is_none(), expected, "{peer} {fields:?}");
        }
    }
}

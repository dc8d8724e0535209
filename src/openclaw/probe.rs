//! Finds out which version of the gateway answers, and how it classifies the clients of each lane.
//!
//! Probes have no token and change nothing. The responses show whether the gateway regards a client
//! as local. Newer versions (2026.4 and later) state their version on `/startupz` to local clients
//! only, and answer 403 to a request that an untrusted proxy forwards. Older versions serve
//! `/__openclaw__/canvas/` to local clients only, and believe a trusted proxy even if it states the
//! client `127.0.0.1`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::HeaderName;
use http::header::HOST;
use serde_json::Value;

use super::connect::{PROBE_CLIENT, ProbeResponse, connect, get};
use super::server_certificate::fetch_server_certificate;
use super::websocket::{probe_challenge, probe_origin};
use crate::fingerprint::Fingerprint;

const STARTUPZ_PATH: &str = "/startupz";
const CANVAS_PATH: &str = "/__openclaw__/canvas/";
/// A loopback address that no gateway should trust as a proxy.
const UNTRUSTED_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// The settings of [`probe`].
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// The configured address of the gateway.
    pub address: SocketAddr,
    /// The source address of the external lane.
    pub external_source: IpAddr,
    /// The addresses of this network namespace.
    pub namespace_addresses: Vec<IpAddr>,
    /// The fingerprint of the sidecar's certificate, which distinguishes the sidecar from the
    /// gateway.
    pub sidecar: Option<Fingerprint>,
    /// The origins of web pages that the gateway should accept.
    pub origins: Vec<String>,
    /// The origins that the gateway's configuration file allows.
    pub allowed: Vec<String>,
}

/// The result of a [`probe`].
#[derive(Clone, Debug)]
pub struct GatewayObservation {
    /// The configured address of the gateway.
    pub address: SocketAddr,
    /// The source address of the external lane.
    pub external_source: IpAddr,
    /// The server that answers at the gateway's address.
    pub server: Server,
    /// Other addresses at which the gateway answers, and whether with TLS.
    pub exposed: Vec<(SocketAddr, bool)>,
    /// How the gateway classifies a client at 127.0.0.1 without forwarding headers.
    pub local: Classification,
    /// How the gateway classifies a client of the external lane.
    pub external: Classification,
    /// The source addresses that were tried, and whether the gateway trusts each as a proxy.
    pub trusts: Vec<(IpAddr, bool)>,
    /// The origins that were tried, and whether the gateway accepts a page of each.
    pub origins: Vec<(String, bool)>,
    /// The origins that the gateway's configuration file allows, if it was read.
    pub allowed: Vec<String>,
}

/// The server that answers at the gateway's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// Nothing: the connection failed with this error.
    Unreachable(String),
    /// A TLS server.
    Tls,
    /// A gateway that is starting.
    Starting,
    /// A gateway with health endpoints (2026.4 and later), and the version if it states one.
    Modern(Option<String>),
    /// A gateway without health endpoints (before 2026.4).
    Old,
    /// Another server, with this response or error.
    Other(String),
}

/// How the gateway classifies a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Classification {
    /// As a client on its own host.
    Local,
    /// As a remote client.
    Remote,
    /// As a client of an untrusted proxy, which the gateway refuses.
    Refused,
    /// The response, described here, does not show it.
    Unclear(String),
}

/// Sends the probes of `plan`. If no OpenClaw gateway answers on loopback, the observation has no
/// classification, trusted sources and origins.
pub async fn probe(plan: &ProbePlan) -> GatewayObservation {
    let ProbePlan { address, external_source, .. } = *plan;
    let mut observation = GatewayObservation {
        address,
        external_source,
        server: detect_server(address).await,
        exposed: probe_exposed_addresses(plan).await,
        local: Classification::Unclear("nothing".into()),
        external: Classification::Unclear("nothing".into()),
        trusts: Vec::new(),
        origins: Vec::new(),
        allowed: plan.allowed.clone(),
    };
    let modern = matches!(observation.server, Server::Modern(_));
    // Lanes exist only for a gateway on loopback.
    if !(modern || observation.server == Server::Old) || !address.ip().is_loopback() {
        return observation;
    }
    let sources: BTreeSet<IpAddr> = [Ipv4Addr::LOCALHOST.into(), UNTRUSTED_SOURCE, external_source]
        .into_iter()
        .chain(plan.namespace_addresses.iter().copied().filter(|ip| ip.is_ipv4() == address.is_ipv4()))
        .collect();
    if modern {
        observation.local = classify_modern_response(&get(address, None, STARTUPZ_PATH, &[]).await);
        observation.external = classify_modern_response(
            &get(address, Some(external_source), STARTUPZ_PATH, &forwarding_headers(PROBE_CLIENT)).await,
        );
    } else {
        observation.local = classify_old_response(&get(address, None, CANVAS_PATH, &[]).await);
        observation.external = classify_old_response(
            &get(address, Some(external_source), CANVAS_PATH, &forwarding_headers(PROBE_CLIENT)).await,
        );
    }
    for source in sources {
        let trusted = if modern {
            modern_trusts_source(&get(address, Some(source), STARTUPZ_PATH, &forwarding_headers(PROBE_CLIENT)).await)
        } else {
            old_trusts_source(&get(address, Some(source), CANVAS_PATH, &loopback_claim()).await)
        };
        observation.trusts.extend(trusted.map(|trusted| (source, trusted)));
    }
    for origin in &plan.origins {
        let allowed = probe_origin(address, external_source, origin).await;
        observation.origins.extend(allowed.map(|allowed| (origin.clone(), allowed)));
    }
    observation
}

/// Finds out which server answers at `address`. HTTP is tried first, since most gateways speak it.
async fn detect_server(address: SocketAddr) -> Server {
    if let Err(error) = connect(address, None).await {
        return Server::Unreachable(error.to_string());
    }
    let answer = match get(address, None, STARTUPZ_PATH, &[]).await {
        Ok(answer) => answer,
        Err(error) => {
            return if fetch_server_certificate(address).await.is_some() {
                Server::Tls
            } else {
                Server::Other(error.to_string())
            };
        }
    };
    let status = answer.status;
    match parse_startupz(&answer) {
        Some(json) => Server::Modern(json["version"].as_str().map(Into::into)),
        None if status == 503 => Server::Starting,
        // This gateway does not regard 127.0.0.1 as a local client, but it is OpenClaw.
        None if is_untrusted_proxy_refusal(&answer) => Server::Modern(None),
        None if probe_challenge(address).await => Server::Old,
        // Some TLS servers answer plain HTTP with an HTTP error.
        None if fetch_server_certificate(address).await.is_some() => Server::Tls,
        None => Server::Other(format!("GET {STARTUPZ_PATH} with {status}, and sends no connect.challenge")),
    }
}

/// Returns the other addresses of this namespace at which a server answers on the gateway's port,
/// and whether with TLS. The sidecar is left out.
async fn probe_exposed_addresses(plan: &ProbePlan) -> Vec<(SocketAddr, bool)> {
    let mut exposed = Vec::new();
    for ip in &plan.namespace_addresses {
        let address = SocketAddr::new(*ip, plan.address.port());
        if address == plan.address || connect(address, None).await.is_err() {
            continue;
        }
        // TLS first, since a TLS server such as the sidecar may answer plain HTTP with an error.
        match fetch_server_certificate(address).await {
            Some(leaf) if plan.sidecar == Some(Fingerprint::of(&leaf)) => {}
            Some(_) => exposed.push((address, true)),
            None if get(address, None, STARTUPZ_PATH, &[]).await.is_ok() => exposed.push((address, false)),
            None => {}
        }
    }
    exposed
}

/// Returns the forwarding headers of the external lane for a client at `client`.
fn forwarding_headers(client: &'static str) -> [(HeaderName, &'static str); 4] {
    const HOST_NAME: &str = "loopgate-check.invalid";
    [
        (HOST, HOST_NAME),
        (HeaderName::from_static("x-forwarded-for"), client),
        (HeaderName::from_static("x-forwarded-proto"), "https"),
        (HeaderName::from_static("x-forwarded-host"), HOST_NAME),
    ]
}

/// Returns the header that states a client on loopback, which older versions believe from a trusted
/// proxy.
fn loopback_claim() -> [(HeaderName, &'static str); 1] {
    [(HeaderName::from_static("x-forwarded-for"), "127.0.0.1")]
}

/// Parses the response of `/startupz`; `None` if it is another response.
fn parse_startupz(answer: &ProbeResponse) -> Option<Value> {
    let json: Value = Some(&answer.body)
        .filter(|_| answer.status == 200 && answer.is_json)
        .and_then(|body| serde_json::from_str(body).ok())?;
    (json["ok"] == true && json["status"].is_string()).then_some(json)
}

/// Returns whether the gateway refuses a request because an untrusted proxy forwarded it.
fn is_untrusted_proxy_refusal(answer: &ProbeResponse) -> bool {
    answer.status == 403 && answer.body.contains("proxy_attribution_required")
}

/// Classifies by the response to `/startupz`, which states the version to local clients only.
fn classify_modern_response(answer: &std::io::Result<ProbeResponse>) -> Classification {
    match answer {
        Ok(answer) if is_untrusted_proxy_refusal(answer) => Classification::Refused,
        Ok(answer) => match parse_startupz(answer) {
            Some(json) if json["version"].is_string() => Classification::Local,
            Some(_) => Classification::Remote,
            None => Classification::Unclear(answer.status.to_string()),
        },
        Err(error) => Classification::Unclear(format!("with an error ({error})")),
    }
}

/// Classifies by the response to the canvas page, which only local clients get without a token.
fn classify_old_response(answer: &std::io::Result<ProbeResponse>) -> Classification {
    match answer {
        Ok(answer) if answer.status == 401 => Classification::Remote,
        Ok(answer) if is_canvas(answer) => Classification::Local,
        Ok(answer) => Classification::Unclear(format!("{}, without the canvas page", answer.status)),
        Err(error) => Classification::Unclear(format!("with an error ({error})")),
    }
}

fn is_canvas(answer: &ProbeResponse) -> bool {
    answer.status == 200 && answer.body.contains("<title>OpenClaw Canvas</title>")
}

/// Returns whether the gateway trusts the source address of a request to `/startupz` as a proxy, by
/// its response; `None` if the response does not show it.
fn modern_trusts_source(answer: &std::io::Result<ProbeResponse>) -> Option<bool> {
    match classify_modern_response(answer) {
        Classification::Refused => Some(false),
        Classification::Remote => Some(true),
        Classification::Local | Classification::Unclear(_) => None,
    }
}

/// Returns whether the gateway trusts the source address of a request for the canvas page with
/// [`loopback_claim`] as a proxy, by its response; `None` if the response does not show it.
fn old_trusts_source(answer: &std::io::Result<ProbeResponse>) -> Option<bool> {
    match classify_old_response(answer) {
        Classification::Local => Some(true),
        Classification::Remote => Some(false),
        Classification::Refused | Classification::Unclear(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> std::io::Result<ProbeResponse> {
        Ok(ProbeResponse { status, is_json: body.starts_with('{'), body: body.into() })
    }

    const REFUSED: &str =
        r#"{"error":{"message":"Proxy client attribution is required.","type":"proxy_attribution_required"}}"#;
    const LOCAL: &str = r#"{"ok":true,"status":"started","version":"2026.9.6","uptimeMs":37456}"#;
    const REMOTE: &str = r#"{"ok":true,"status":"started"}"#;
    const UI: &str = "<!doctype html><title>OpenClaw Control</title>";
    const CANVAS_PAGE: &str = "<!doctype html>\n<title>OpenClaw Canvas</title>";
    const UNAUTHORIZED: &str = r#"{"error":{"message":"Unauthorized","type":"unauthorized"}}"#;

    #[test]
    fn answers_of_both_versions_are_understood() {
        for (answer, believed, trusted) in [
            (answer(200, LOCAL), Classification::Local, None),
            (answer(200, REMOTE), Classification::Remote, Some(true)),
            (answer(403, REFUSED), Classification::Refused, Some(false)),
            (answer(200, UI), Classification::Unclear("200".into()), None),
            (answer(503, ""), Classification::Unclear("503".into()), None),
        ] {
            assert_eq!(
                (classify_modern_response(&answer), modern_trusts_source(&answer)),
                (believed, trusted),
                "{answer:?}"
            );
        }
        for (answer, believed, trusted) in [
            (answer(200, CANVAS_PAGE), Classification::Local, Some(true)),
            (answer(401, UNAUTHORIZED), Classification::Remote, Some(false)),
            (answer(200, UI), Classification::Unclear("200, without the canvas page".into()), None),
        ] {
            assert_eq!((classify_old_response(&answer), old_trusts_source(&answer)), (believed, trusted), "{answer:?}");
        }
    }
}

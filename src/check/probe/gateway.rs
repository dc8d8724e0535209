//! Asks the gateway what it is, and how it sees each lane.
//!
//! No probe has a token or changes anything. What tells a local client from a remote one without a token:
//! newer versions state their own version to local clients only, on `/startupz`, and answer 403 to whatever an untrusted proxy forwards;
//! the older one serves `/__openclaw__/canvas/` to local clients only, and takes a trusted proxy's word even for `127.0.0.1`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::HeaderName;
use http::header::HOST;
use serde_json::Value;

use super::http::{Answer, get};
use super::{CLIENT, connect, tls, websocket};
use crate::check::gateway::{Believed, Seen, Voice};
use crate::fingerprint::Fingerprint;

const STARTED: &str = "/startupz";
const CANVAS: &str = "/__openclaw__/canvas/";
/// An address of loopback that nobody has a reason to trust.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// What is to be asked, of whom.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the gateway should be.
    pub address: SocketAddr,
    /// The source address of the external lane.
    pub external_source: IpAddr,
    /// This namespace's own addresses.
    pub own: Vec<IpAddr>,
    /// The certificate that the sidecar shows, so that it isn't taken for the gateway.
    pub sidecar: Option<Fingerprint>,
    /// Origins of browsers that should be allowed.
    pub origins: Vec<String>,
    /// Origins that the gateway's own configuration allows.
    pub allowed: Vec<String>,
}

/// Asks.
pub async fn look(plan: &Plan) -> Seen {
    let Plan { address, external_source, .. } = *plan;
    let mut seen = Seen {
        address,
        external_source,
        voice: voice(address).await,
        exposed: exposed(plan).await,
        local: Believed::Unclear("nothing".into()),
        external: Believed::Unclear("nothing".into()),
        trusts: Vec::new(),
        origins: Vec::new(),
        allowed: plan.allowed.clone(),
    };
    let modern = matches!(seen.voice, Voice::Modern(_));
    // With another loopback address than 127.0.0.0/8, or none, there are no lanes to ask about.
    if !(modern || seen.voice == Voice::Old) || !address.ip().is_loopback() {
        return seen;
    }
    let sources: BTreeSet<IpAddr> = [Ipv4Addr::LOCALHOST.into(), STRANGER, external_source]
        .into_iter()
        .chain(plan.own.iter().copied().filter(|ip| ip.is_ipv4() == address.is_ipv4()))
        .collect();
    if modern {
        seen.local = as_modern(&get(address, None, STARTED, &[]).await);
        seen.external = as_modern(&get(address, Some(external_source), STARTED, &forwarded(CLIENT)).await);
    } else {
        seen.local = as_old(&get(address, None, CANVAS, &[]).await);
        seen.external = as_old(&get(address, Some(external_source), CANVAS, &forwarded(CLIENT)).await);
    }
    for source in sources {
        let trusted = if modern {
            trusted_by_modern(&get(address, Some(source), STARTED, &forwarded(CLIENT)).await)
        } else {
            trusted_by_old(&get(address, Some(source), CANVAS, &pretending()).await)
        };
        seen.trusts.extend(trusted.map(|trusted| (source, trusted)));
    }
    for origin in &plan.origins {
        let allowed = websocket::allows(address, external_source, origin).await;
        seen.origins.extend(allowed.map(|allowed| (origin.clone(), allowed)));
    }
    seen
}

async fn voice(address: SocketAddr) -> Voice {
    if let Err(error) = connect(address, None).await {
        return Voice::Silent(error.to_string());
    }
    let answer = match get(address, None, STARTED, &[]).await {
        Ok(answer) => answer,
        Err(error) => return if tls::certificate(address).await.is_some() { Voice::Tls } else { Voice::Other(error.to_string()) },
    };
    let status = answer.status;
    match started(&answer) {
        Some(told) => Voice::Modern(told["version"].as_str().map(Into::into)),
        None if status == 503 => Voice::Starting,
        // It does not trust itself, perhaps, but it is one.
        None if is_attribution(&answer) => Voice::Modern(None),
        None if websocket::challenges(address).await => Voice::Old,
        // Some TLS servers tell those who speak plain HTTP by HTTP that they should not.
        None if tls::certificate(address).await.is_some() => Voice::Tls,
        None => Voice::Other(format!("GET {STARTED} with {status}, and sends no connect.challenge")),
    }
}

/// Where else the gateway answers: on its own port of the namespace's other addresses.
async fn exposed(plan: &Plan) -> Vec<(SocketAddr, bool)> {
    let mut exposed = Vec::new();
    for ip in &plan.own {
        let address = SocketAddr::new(*ip, plan.address.port());
        if address == plan.address || connect(address, None).await.is_err() {
            continue;
        }
        // TLS first: the sidecar, like others, answers plain HTTP too, by saying that it should not be.
        match tls::certificate(address).await {
            Some(leaf) if plan.sidecar == Some(Fingerprint::of(&leaf)) => {}
            Some(_) => exposed.push((address, true)),
            None if get(address, None, STARTED, &[]).await.is_ok() => exposed.push((address, false)),
            None => {}
        }
    }
    exposed
}

/// The headers of the external lane, for a client at `client`.
fn forwarded(client: &'static str) -> [(HeaderName, &'static str); 4] {
    const HOST_NAME: &str = "loopgate-check.invalid";
    [
        (HOST, HOST_NAME),
        (HeaderName::from_static("x-forwarded-for"), client),
        (HeaderName::from_static("x-forwarded-proto"), "https"),
        (HeaderName::from_static("x-forwarded-host"), HOST_NAME),
    ]
}

/// A proxy's word for a local client, which the older version takes from a proxy that it trusts. `Host` is left as it is.
fn pretending() -> [(HeaderName, &'static str); 1] {
    [(HeaderName::from_static("x-forwarded-for"), "127.0.0.1")]
}

/// What `/startupz` says, if that is what answered.
fn started(answer: &Answer) -> Option<Value> {
    let told: Value =
        Some(&answer.body).filter(|_| answer.status == 200 && answer.is_json).and_then(|body| serde_json::from_str(body).ok())?;
    (told["ok"] == true && told["status"].is_string()).then_some(told)
}

fn is_attribution(answer: &Answer) -> bool {
    answer.status == 403 && answer.body.contains("proxy_attribution_required")
}

fn as_modern(answer: &std::io::Result<Answer>) -> Believed {
    match answer {
        Ok(answer) if is_attribution(answer) => Believed::Refused,
        Ok(answer) => match started(answer) {
            Some(told) if told["version"].is_string() => Believed::Local,
            Some(_) => Believed::Remote,
            None => Believed::Unclear(answer.status.to_string()),
        },
        Err(error) => Believed::Unclear(format!("by nothing ({error})")),
    }
}

fn as_old(answer: &std::io::Result<Answer>) -> Believed {
    match answer {
        Ok(answer) if answer.status == 401 => Believed::Remote,
        Ok(answer) if is_canvas(answer) => Believed::Local,
        Ok(answer) => Believed::Unclear(format!("{}, without the canvas page", answer.status)),
        Err(error) => Believed::Unclear(format!("by nothing ({error})")),
    }
}

fn is_canvas(answer: &Answer) -> bool {
    answer.status == 200 && answer.body.contains("<title>OpenClaw Canvas</title>")
}

fn trusted_by_modern(answer: &std::io::Result<Answer>) -> Option<bool> {
    match as_modern(answer) {
        Believed::Refused => Some(false),
        Believed::Remote => Some(true),
        Believed::Local | Believed::Unclear(_) => None,
    }
}

fn trusted_by_old(answer: &std::io::Result<Answer>) -> Option<bool> {
    match as_old(answer) {
        Believed::Local => Some(true),
        Believed::Remote => Some(false),
        Believed::Refused | Believed::Unclear(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> std::io::Result<Answer> {
        Ok(Answer { status, is_json: body.starts_with('{'), body: body.into() })
    }

    const REFUSED: &str = r#"{"error":{"message":"Proxy client attribution is required.","type":"proxy_attribution_required"}}"#;
    const LOCAL: &str = r#"{"ok":true,"status":"started","version":"2026.9.6","uptimeMs":37456}"#;
    const REMOTE: &str = r#"{"ok":true,"status":"started"}"#;
    const UI: &str = "<!doctype html><title>OpenClaw Control</title>";
    const CANVAS_PAGE: &str = "<!doctype html>\n<title>OpenClaw Canvas</title>";
    const UNAUTHORIZED: &str = r#"{"error":{"message":"Unauthorized","type":"unauthorized"}}"#;

    #[test]
    fn answers_as_both_versions_gave_them() {
        for (answer, believed, trusted) in [
            (answer(200, LOCAL), Believed::Local, None),
            (answer(200, REMOTE), Believed::Remote, Some(true)),
            (answer(403, REFUSED), Believed::Refused, Some(false)),
            (answer(200, UI), Believed::Unclear("200".into()), None),
            (answer(503, ""), Believed::Unclear("503".into()), None),
        ] {
            assert_eq!((as_modern(&answer), trusted_by_modern(&answer)), (believed, trusted), "{answer:?}");
        }
        for (answer, believed, trusted) in [
            (answer(200, CANVAS_PAGE), Believed::Local, Some(true)),
            (answer(401, UNAUTHORIZED), Believed::Remote, Some(false)),
            (answer(200, UI), Believed::Unclear("200, without the canvas page".into()), None),
        ] {
            assert_eq!((as_old(&answer), trusted_by_old(&answer)), (believed, trusted), "{answer:?}");
        }
    }
}

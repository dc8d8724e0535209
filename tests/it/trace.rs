//! The `traceparent` of a request: passed on, or replaced.

use loopgate::config::TraceparentUse;

use crate::harness::{AGENT, Harness, OUTSIDER, PROTOCOLS, TRUSTED_PROXY, start_process};

const STATED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STATE: (&str, &str) = ("tracestate", "vendor=x");

/// Sends a request with this `traceparent` on each lane and over each protocol; returns the
/// `traceparent` and the `tracestate` that the gateway receives with each.
async fn received_contexts(harness: &Harness, stated: Option<&str>) -> Vec<(Option<String>, Option<String>)> {
    let mut context = Vec::new();
    for protocol in PROTOCOLS {
        for source in [OUTSIDER, AGENT] {
            let fields: Vec<_> = stated.into_iter().map(|stated| ("traceparent", stated)).chain([STATE]).collect();
            assert_eq!(harness.send_request(protocol, source, "GET /", &fields).await.0, 200);
            let received = harness.gateway.requests().pop().unwrap();
            let field = |name| received.field(name).map(ToOwned::to_owned);
            context.push((field("traceparent"), field("tracestate")));
        }
    }
    context
}

#[tokio::test]
async fn a_trace_context_passes_unchanged_on_both_lanes() {
    let harness = Harness::start().await;
    for stated in [Some(STATED), Some("nonsense"), None] {
        for context in received_contexts(&harness, stated).await {
            assert_eq!(context, (stated.map(Into::into), Some("vendor=x".into())));
        }
    }
}

#[tokio::test]
async fn an_absent_or_invalid_trace_context_is_replaced() {
    let harness = Harness::start_with(|config| config.log.traceparent = TraceparentUse::Make).await;
    for context in received_contexts(&harness, Some(STATED)).await {
        assert_eq!(context, (Some(STATED.into()), Some("vendor=x".into())));
    }
    let mut trace_ids = std::collections::BTreeSet::new();
    for stated in [Some("nonsense"), Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01"), None] {
        for (traceparent, tracestate) in received_contexts(&harness, stated).await {
            let generated = traceparent.unwrap();
            assert!(
                generated.len() == STATED.len() && generated.starts_with("00-") && generated.ends_with("-01"),
                "{generated}"
            );
            assert!(tracestate.is_none() && trace_ids.insert(generated[3..35].to_owned()), "{generated}");
        }
    }
}

#[tokio::test]
async fn a_client_can_not_remove_the_trace_context() {
    let harness = Harness::start_with(|config| config.log.traceparent = TraceparentUse::Make).await;
    let fields = [("connection", "traceparent, close"), ("traceparent", STATED)];
    assert_eq!(harness.send_request(PROTOCOLS[0], OUTSIDER, "GET /", &fields).await.0, 200);
    assert_eq!(harness.gateway.requests().pop().unwrap().field("traceparent"), Some(STATED));
}

#[tokio::test]
async fn the_access_log_names_the_client_and_the_request_id() {
    let sidecar = start_process(&["--access-log", &format!("--trusted-proxy={TRUSTED_PROXY}/32")], "").await;
    for protocol in PROTOCOLS {
        let table: [(_, &[(&str, &str)], _, _); 4] = [
            (OUTSIDER, &[("x-request-id", "abc"), ("x-forwarded-for", "203.0.113.5")], OUTSIDER, Some("abc")),
            (TRUSTED_PROXY, &[("x-request-id", "not an id"), ("x-forwarded-for", "203.0.113.5")], "203.0.113.5", None),
            (TRUSTED_PROXY, &[], TRUSTED_PROXY, None),
            (AGENT, &[], AGENT, None),
        ];
        for (number, (source, fields, client, stated)) in table.into_iter().enumerate() {
            let path = format!("/{protocol:?}-{number}");
            assert_eq!(sidecar.send_request(protocol, source, &format!("GET {path}"), fields).await.0, 200);
            let line: serde_json::Value =
                serde_json::from_str(&sidecar.process().wait_for_log(&format!("\"path\":\"{path}\"")).await).unwrap();
            assert_eq!(line["client"], client, "{line}");
            assert!(line["bytes"].is_u64() && line["peer"].as_str().unwrap().starts_with(source), "{line}");
            let id = line["request_id"].as_str().unwrap();
            assert!(stated.map_or(id.len() > 8 && !id.contains(' '), |stated| id == stated), "{line}");
            let ms = line["ms"].to_string();
            assert!(ms.split_once('.').is_some_and(|(_, after)| after.len() == 1), "{line}");
        }
    }
}

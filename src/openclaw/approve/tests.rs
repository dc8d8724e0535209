//! Tests of approvals with a fake gateway that pairs devices like OpenClaw 2026.2.19.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::openclaw::pair::SCOPES;
use crate::shutdown::Shutdown;

/// The devices of a fake gateway. Each device has at most one pending request.
#[derive(Debug, Default)]
pub(in crate::openclaw) struct FakeDevices {
    /// The scopes of paired devices.
    pub paired: BTreeMap<String, Vec<String>>,
    /// The scopes of pending requests, by device. A request's id is `request-of-DEVICE`.
    pub pending: BTreeMap<String, Vec<String>>,
    /// Whether the gateway regards clients as remote.
    pub remote: bool,
}

impl FakeDevices {
    fn answer(&mut self, granted_scopes: &mut Vec<String>, request: &Value) -> Result<Value, Value> {
        let params = &request["params"];
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let method = request["method"].as_str().unwrap();
        if method == "connect" {
            let (id, scopes) = (params["device"]["id"].as_str().unwrap().to_owned(), texts(&params["scopes"]));
            let may = |has: &Vec<String>| scopes.iter().all(|scope| has.contains(scope));
            if !self.paired.contains_key(&id) && !self.pending.contains_key(&id) && !self.remote {
                self.paired.insert(id.clone(), scopes.clone());
            }
            if self.paired.get(&id).is_some_and(may) {
                *granted_scopes = scopes;
                return Ok(json!({"type": "hello-ok"}));
            }
            // A pending request is not updated.
            self.pending.entry(id.clone()).or_insert(scopes);
            return Err(json!({"code": "NOT_PAIRED", "message": "pairing required",
                    "details": {"requestId": format!("request-of-{id}")}}));
        }
        assert!(granted_scopes.iter().any(|scope| scope == "operator.pairing"), "{method} needs a scope");
        match method {
            "device.pair.list" => {
                let pending = self.pending.iter().map(
                    |(id, scopes)| json!({"requestId": format!("request-of-{id}"), "deviceId": id, "scopes": scopes}),
                );
                Ok(json!({"pending": pending.collect::<Vec<_>>()}))
            }
            "device.pair.approve" => {
                let id = params["requestId"].as_str().unwrap().strip_prefix("request-of-").unwrap().to_owned();
                let scopes = self.pending.remove(&id).unwrap();
                self.paired.entry(id).or_default().extend(scopes);
                Ok(json!({}))
            }
            "device.pair.remove" => {
                let id = params["deviceId"].as_str().unwrap();
                let unknown = || json!({"code": "INVALID_REQUEST", "message": "unknown deviceId"});
                self.paired.remove(id).map(|_| json!({ "deviceId": id })).ok_or_else(unknown)
            }
            other => panic!("{other}"),
        }
    }
}

pub(in crate::openclaw) async fn start_gateway(devices: &Arc<Mutex<FakeDevices>>, shutdown: &Shutdown) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let devices = Arc::clone(devices);
    shutdown.spawn(async move {
        loop {
            let mut socket = accept_async(listener.accept().await.unwrap().0).await.unwrap();
            let challenge =
                json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n-1", "ts": 1}});
            socket.send(Message::text(challenge.to_string())).await.unwrap();
            let mut scopes = Vec::new();
            while let Some(Ok(Message::Text(text))) = socket.next().await {
                let request: Value = serde_json::from_str(&text).unwrap();
                let answer = match devices.lock().unwrap().answer(&mut scopes, &request) {
                    Ok(payload) => json!({"type": "res", "id": request["id"], "ok": true, "payload": payload}),
                    Err(error) => json!({"type": "res", "id": request["id"], "ok": false, "error": error}),
                };
                socket.send(Message::text(answer.to_string())).await.unwrap();
            }
        }
    });
    address
}

fn scopes(list: &[&str]) -> Vec<String> {
    list.iter().map(|scope| (*scope).to_owned()).collect()
}

#[tokio::test]
async fn a_device_that_may_not_approve_itself_is_approved_by_a_second_one() {
    let shutdown = Shutdown::new();
    let device = Device::generate().unwrap();
    // This is the state after a sub-agent failed: the device is paired for its first scope, and a
    // request for another one is pending.
    let devices = Arc::new(Mutex::new(FakeDevices {
        paired: [(device.id(), scopes(&["operator.admin"]))].into(),
        pending: [(device.id(), scopes(&["operator.write"])), ("another".into(), scopes(&["operator.admin"]))].into(),
        remote: false,
    }));
    let address = start_gateway(&devices, &shutdown).await;
    assert!(matches!(pair::pair(address, &device, None).await, Err(Error::NeedsApproval { request: Some(_) })));
    pair_and_approve(address, &device, None).await.unwrap();
    let devices = devices.lock().unwrap();
    assert_eq!(devices.paired.keys().collect::<Vec<_>>(), [&device.id()], "the second device is removed again");
    assert!(SCOPES.iter().all(|scope| devices.paired[&device.id()].contains(&(*scope).to_owned())));
    assert_eq!(devices.pending.keys().collect::<Vec<_>>(), ["another"], "another device's request still waits");
}

#[tokio::test]
async fn a_remote_client_still_needs_a_human() {
    let shutdown = Shutdown::new();
    let device = Device::generate().unwrap();
    let devices = Arc::new(Mutex::new(FakeDevices { remote: true, ..FakeDevices::default() }));
    let address = start_gateway(&devices, &shutdown).await;
    let error = pair_and_approve(address, &device, None).await.unwrap_err();
    let own = format!("request-of-{}", device.id());
    assert!(matches!(&error, Error::NeedsApproval { request: Some(id) } if *id == own), "{error:?}");
    assert!(devices.lock().unwrap().paired.is_empty());
}

#[test]
fn only_requests_that_loopgate_could_have_made_are_approved() {
    for (request, ours) in [
        (json!({"role": "operator", "roles": ["operator"], "scopes": ["operator.read"]}), true),
        (json!({"scopes": SCOPES}), true),
        (json!({"role": "node", "scopes": []}), false),
        (json!({"role": "operator", "roles": ["operator", "node"]}), false),
        (json!({"role": "operator", "scopes": ["operator.read", "operator.other"]}), false),
    ] {
        assert_eq!(could_be_loopgates(&request), ours, "{request}");
    }
}

#[test]
fn the_advice_says_which_device_can_approve_and_for_which_scopes() {
    let state = tempfile::tempdir().unwrap();
    let identity = state.path().join("identity/device.json");
    let device = Device::create(&identity).unwrap();
    assert_eq!(
        approval_advice(&identity, Some("r-1")),
        "the gateway wants a human to approve the device: run `openclaw devices approve r-1` beside it, once"
    );
    // With these files the directory is the state directory of a gateway.
    let write = |name: &str, value: Value| {
        std::fs::create_dir_all(state.path().join("devices")).unwrap();
        std::fs::write(state.path().join("devices").join(name), value.to_string()).unwrap();
    };
    write("paired.json", json!({device.id(): {"scopes": ["operator.admin"]}}));
    write("pending.json", json!({"r-2": {"requestId": "r-2", "deviceId": device.id(), "scopes": ["operator.write"]}}));
    let stuck = approval_advice(&identity, None);
    assert!(
        stuck.contains("approved for operator.write")
            && stuck.contains("OPENCLAW_STATE_DIR=/tmp/fresh openclaw devices approve r-2"),
        "{stuck}"
    );
    write("paired.json", json!({device.id(): {"scopes": ["operator.pairing"]}}));
    let may = approval_advice(&identity, None);
    assert!(may.contains("for operator.write: run `openclaw devices approve r-2`"), "{may}");
}

//! SIGHUP: what can change while running does, what can't is named, and what is wrong changes nothing.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::house::{AGENT, EXTERNAL, House, Protocol, STRANGER, request};
use crate::process::Process;

const DONE: &str = "going by the configuration as it is now";

/// What the sidecar goes by, with a change.
async fn change(house: &House, change: impl FnOnce(&mut loopgate::config::Config)) {
    let mut config = (*house.sidecar.config()).clone();
    change(&mut config);
    house.sidecar.reload(Ok(config), |_| {});
}

#[tokio::test]
async fn whoever_is_denied_by_now_is_gone_and_the_others_stay() {
    let house = House::open().await;
    let mut denied = house.h1(STRANGER).await;
    let mut other = house.h1("127.0.0.4").await;
    for client in [&mut denied, &mut other] {
        assert_eq!(client.ask(request("GET /", "")).await.status(), 200);
    }
    change(&house, |config| config.external.deny = vec![format!("{STRANGER}/32").parse().unwrap()]).await;
    assert!(denied.rest().await.is_empty());
    assert!(house.handshake(house.tcp(STRANGER).await, "http/1.1").await.is_err());
    assert_eq!(other.ask(request("GET /", "")).await.status(), 200, "on the same connection");
    change(&house, |config| config.external.deny.clear()).await;
    assert_eq!(house.ask(Protocol::H2, STRANGER, "GET /", &[]).await.0, 200);
}

#[tokio::test]
async fn whoever_a_proxy_brought_and_is_denied_by_now_is_gone_and_its_other_clients_stay() {
    let house = House::open().await;
    let named = [("x-forwarded-for", "203.0.113.9")];
    let mut sockets = house.websockets(crate::house::PROXY, "/ws", &[&named, &[("x-forwarded-for", "198.51.100.9")]]).await;
    let page = [("origin", "https://page.example")];
    sockets.extend(house.websockets(AGENT, "/ws", &[&page, &[]]).await);
    change(&house, |config| config.external.deny = vec!["203.0.113.0/24".parse().unwrap(), format!("{AGENT}/32").parse().unwrap()]).await;
    for (socket, stays) in sockets.iter_mut().zip([false, true, false, true]) {
        let sent = socket.send(Message::text("still there?")).await;
        let heard = timeout(Duration::from_secs(10), socket.next()).await.unwrap();
        assert_eq!(sent.is_ok() && matches!(heard, Some(Ok(_))), stays, "{heard:?}");
    }
}

#[tokio::test]
async fn an_agent_whose_network_is_no_longer_listed_loses_its_connections() {
    let house = House::open().await;
    let mut agent = house.h1(AGENT).await;
    let mut websocket = house.websocket(Protocol::H1, AGENT, "/ws").await;
    assert_eq!(agent.ask(request("GET /", "")).await.status(), 200);
    change(&house, |config| config.agents.cidrs.clear()).await;
    assert!(agent.rest().await.is_empty());
    let end = timeout(Duration::from_secs(10), websocket.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    assert_eq!(house.ask(Protocol::H1, AGENT, "GET /", &[]).await.0, 200);
    assert_eq!(house.gateway.heard().last().unwrap().source(), EXTERNAL);
}

#[tokio::test]
async fn a_proxy_that_is_no_longer_trusted_can_not_go_on_speaking_for_others() {
    let house = House::open().await;
    let mut proxy = house.h1(crate::house::PROXY).await;
    assert_eq!(proxy.ask(request("GET /", "X-Forwarded-For: 203.0.113.5\r\n")).await.status(), 200);
    assert_eq!(house.gateway.heard()[0].field("x-forwarded-for"), Some("203.0.113.5"));
    change(&house, |config| config.external.trusted_proxies.clear()).await;
    assert!(proxy.rest().await.is_empty());
    let fields = [("x-forwarded-for", "203.0.113.5")];
    assert_eq!(house.ask(Protocol::H1, crate::house::PROXY, "GET /", &fields).await.0, 200);
    assert_eq!(house.gateway.heard()[1].field("x-forwarded-for"), Some(crate::house::UNKNOWN));
}

#[tokio::test]
async fn path_rules_count_at_once_and_limits_for_new_connections() {
    let house = House::open().await;
    let mut client = house.h1(STRANGER).await;
    assert_eq!(client.ask(request("GET /", "")).await.status(), 200);
    change(&house, |config| {
        config.external.paths = vec![loopgate::config::PathRule { allow: false, prefix: "/private".into(), methods: vec![] }];
        config.limits.request_timeout = Duration::from_millis(100);
    })
    .await;
    assert_eq!(client.ask(request("GET /private", "")).await.status(), 403);
    assert_eq!(client.ask(request("GET /", "")).await.status(), 200);
    assert_eq!(house.ask(Protocol::H1, STRANGER, "GET /stalls", &[]).await.0, 504);
}

#[tokio::test]
async fn sighup_reads_the_file_again() {
    let process = Process::start(&["--deny=127.0.0.5/32"], "[external]\nallow = []\n").await;
    let mut client = process.h1("127.0.0.4").await;
    assert_eq!(client.ask(request("GET /", "")).await.status(), 200);
    std::fs::write(
        process.file(),
        format!(
            "[external]\nallow = [\"127.0.0.0/24\"]\ndeny = [\"{STRANGER}\"]\n[docker]\nany_project = true\n[log]\nlevel = \"debug\"\n"
        ),
    )
    .unwrap();
    process.signal(Signal::SIGHUP);
    process.says(DONE).await;
    let kept = process.says("only a restart makes it count").await;
    assert!(kept.contains("\"keys\":\"docker\""), "{kept}");
    // The flag beats the file, as it did at the start.
    assert!(process.handshake(process.tcp("127.0.0.5").await, "http/1.1").await.is_err());
    assert_eq!(process.ask(Protocol::H1, STRANGER, "GET /", &[]).await.0, 200);
    assert_eq!(client.ask(request("GET /", "")).await.status(), 200, "on the same connection");
    process.says("\"level\":\"DEBUG\"").await;
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_is_told() {
    let process = Process::start(&[], &format!("[external]\ndeny = [\"{STRANGER}\"]\n")).await;
    std::fs::write(process.file(), "[external]\ndenied = []\nallow = [\"nonsense\"]\n").unwrap();
    process.signal(Signal::SIGHUP);
    let told = process.says("keeping the configuration as it was").await;
    assert!(told.contains("loopgate.toml:2") && told.contains("denied") && told.contains("nonsense"), "{told}");
    assert!(process.handshake(process.tcp(STRANGER).await, "http/1.1").await.is_err());
    std::fs::write(process.file(), "[tls]\nclient_ca = \"/nowhere/ca.pem\"\n").unwrap();
    process.signal(Signal::SIGHUP);
    process.says("/nowhere/ca.pem").await;
    assert!(process.handshake(process.tcp(STRANGER).await, "http/1.1").await.is_err());
    std::fs::write(process.file(), "").unwrap();
    process.signal(Signal::SIGHUP);
    process.says(DONE).await;
    assert_eq!(process.ask(Protocol::H1, STRANGER, "GET /", &[]).await.0, 200);
}

//! SIGHUP: what can change while running does, what can't is named, and what is wrong changes nothing.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::house::{AGENT, EXTERNAL, House, PROXY, Protocol, STRANGER, h2_request, request, whole};
use crate::process::Process;

/// For what should happen at once.
const SOON: Duration = Duration::from_secs(10);
const DONE: &str = "configuration reloaded";

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
    let mut sockets = house.websockets(PROXY, "/ws", &[&named, &[("x-forwarded-for", "198.51.100.9")]]).await;
    let page = [("origin", "https://page.example")];
    sockets.extend(house.websockets(AGENT, "/ws", &[&page, &[]]).await);
    change(&house, |config| config.external.deny = vec!["203.0.113.0/24".parse().unwrap(), format!("{AGENT}/32").parse().unwrap()]).await;
    for (socket, stays) in sockets.iter_mut().zip([false, true, false, true]) {
        let sent = socket.send(Message::text("still there?")).await;
        let heard = timeout(SOON, socket.next()).await.unwrap();
        assert_eq!(sent.is_ok() && matches!(heard, Some(Ok(_))), stays, "{heard:?}");
    }
}

#[tokio::test]
async fn so_are_the_answers_to_it_that_are_on_their_way() {
    const FIELDS: [&str; 2] = ["X-Forwarded-For: 203.0.113.9\r\n", "Origin: https://page.example\r\n"];
    let house = House::open().await;
    let [denied, other] = ["203.0.113.9", "198.51.100.9"].map(|client| [("x-forwarded-for", client)]);
    let mut h2 = house.h2(PROXY).await;
    let mut streams = Vec::new();
    for fields in [&denied, &other] {
        streams.push(h2.send_request(h2_request("GET /events", fields), true).unwrap().0.await.unwrap().into_body());
    }
    let mut large = h2.send_request(h2_request("GET /large?100000000", &denied), true).unwrap().0.await.unwrap().into_body();
    let (unanswered, _) = h2.send_request(h2_request("GET /stalls", &denied), true).unwrap();
    let mut h1 = [house.h1(PROXY).await, house.h1(AGENT).await];
    for (client, fields) in h1.iter_mut().zip(FIELDS) {
        client.send(request("GET /events", fields)).await.unwrap();
        assert_eq!(client.head().await.unwrap().status(), 200);
    }
    timeout(SOON, house.gateway.has_heard(6)).await.unwrap();
    change(&house, |config| config.external.deny = vec!["203.0.113.0/24".parse().unwrap(), format!("{AGENT}/32").parse().unwrap()]).await;
    assert!(timeout(SOON, whole(&mut streams[0])).await.unwrap().is_err());
    // There is always more of this one.
    assert!(timeout(SOON, whole(&mut large)).await.unwrap().is_err());
    assert_eq!(timeout(SOON, unanswered).await.unwrap().unwrap().status(), 403);
    for client in &mut h1 {
        assert_eq!(timeout(SOON, client.rest()).await.unwrap(), b"", "not even an end");
    }
    house.gateway.pass(12);
    assert_eq!(timeout(SOON, whole(&mut streams[1])).await.unwrap().unwrap().len(), 3 * "data: event 0\n".len());
}

#[tokio::test]
async fn a_proxy_that_is_denied_by_now_keeps_nothing_of_its_own() {
    let house = House::open().await;
    let mut sockets = house.websockets(PROXY, "/ws", &[&[], &[("x-forwarded-for", "198.51.100.9")]]).await;
    change(&house, |config| config.external.deny = vec![format!("{PROXY}/32").parse().unwrap()]).await;
    for (socket, stays) in sockets.iter_mut().zip([false, true]) {
        let sent = socket.send(Message::text("still there?")).await;
        let heard = timeout(SOON, socket.next()).await.unwrap();
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
    let end = timeout(SOON, websocket.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    assert_eq!(house.ask(Protocol::H1, AGENT, "GET /", &[]).await.0, 200);
    assert_eq!(house.gateway.heard().last().unwrap().source(), EXTERNAL);
}

#[tokio::test]
async fn a_proxy_that_is_no_longer_trusted_can_not_go_on_speaking_for_others() {
    let house = House::open().await;
    let mut proxy = house.h1(PROXY).await;
    assert_eq!(proxy.ask(request("GET /", "X-Forwarded-For: 203.0.113.5\r\n")).await.status(), 200);
    assert_eq!(house.gateway.heard()[0].field("x-forwarded-for"), Some("203.0.113.5"));
    change(&house, |config| config.external.trusted_proxies.clear()).await;
    assert!(proxy.rest().await.is_empty());
    let fields = [("x-forwarded-for", "203.0.113.5")];
    assert_eq!(house.ask(Protocol::H1, PROXY, "GET /", &fields).await.0, 200);
    assert_eq!(house.gateway.heard()[1].field("x-forwarded-for"), Some(crate::house::UNKNOWN));
}

#[tokio::test]
async fn not_even_where_its_address_is_an_agents() {
    let house = House::with(|config| config.agents.cidrs.push(format!("{PROXY}/32").parse().unwrap())).await;
    let mut proxy = house.h1(PROXY).await;
    assert_eq!(proxy.ask(request("GET /", "X-Forwarded-For: 203.0.113.5\r\n")).await.status(), 200);
    assert_eq!(house.gateway.heard()[0].field("x-forwarded-for"), Some("203.0.113.5"));
    change(&house, |config| config.external.trusted_proxies.clear()).await;
    assert!(timeout(SOON, proxy.rest()).await.unwrap().is_empty());
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
    let kept = process.says("need a restart").await;
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
    let told = process.says("reload rejected, old configuration still in use").await;
    assert!(told.contains("loopgate.toml:2") && told.contains("denied") && told.contains("nonsense"), "{told}");
    assert!(process.handshake(process.tcp(STRANGER).await, "http/1.1").await.is_err());
    std::fs::write(process.file(), "[tls]\nclient_ca = \"/nowhere/ca.pem\"\n").unwrap();
    process.signal(Signal::SIGHUP);
    process.says("/nowhere/ca.pem").await;
    assert!(process.handshake(process.tcp(STRANGER).await, "http/1.1").await.is_err());
    // Nobody will ever write to this pipe.
    std::fs::remove_file(process.file()).unwrap();
    nix::unistd::mkfifo(&process.file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    process.signal(Signal::SIGHUP);
    process.says("is no regular file").await;
    std::fs::remove_file(process.file()).unwrap();
    std::fs::write(process.file(), "").unwrap();
    process.signal(Signal::SIGHUP);
    process.says(DONE).await;
    assert_eq!(process.ask(Protocol::H1, STRANGER, "GET /", &[]).await.0, 200);
}

#[tokio::test]
async fn what_is_named_of_the_gateways_and_is_not_there_is_told_at_the_start() {
    let process = Process::start(&["--token-file=/nope/token", "--gateway-state-dir=/nope/state"], "").await;
    for (key, path) in [("gateway.token_file", "/nope/token"), ("gateway.state_dir", "/nope/state")] {
        let told = process.says(path).await;
        assert!(told.contains("WARN") && told.contains(key), "{told}");
    }
}

/// The operator's pair for `name`, in the files of that name in `directory`.
fn write_pair(directory: &std::path::Path, name: &str) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    std::fs::write(directory.join("pair.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("pair.key"), made.signing_key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn a_certificate_that_comes_while_the_client_ca_is_away_is_served_once_that_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    write_pair(directory.path(), "one.example");
    std::fs::copy(file("pair.pem"), file("clients.pem")).unwrap();
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flag = |name: &str, file: std::path::PathBuf| format!("--{name}={}", file.display());
    let flags = [
        flag("tls-cert", file("pair.pem")),
        flag("tls-key", file("pair.key")),
        flag("client-ca", file("clients.pem")),
        format!("--admin={admin}"),
    ];
    let process = Process::start(&flags.each_ref().map(String::as_str), "").await;
    let certificate = async || {
        let status = tokio::task::spawn_blocking(move || loopgate::admin::client::status(admin)).await.unwrap().unwrap();
        status.certificate
    };
    std::fs::rename(file("clients.pem"), file("away.pem")).unwrap();
    write_pair(directory.path(), "two.example");
    process.says("can't be served").await;
    let told = certificate().await;
    assert_eq!(told.names, ["one.example"], "what is served, not what should be");
    assert!(told.problem.as_deref().is_some_and(|problem| problem.contains("clients.pem")), "{told:?}");
    std::fs::rename(file("away.pem"), file("clients.pem")).unwrap();
    process.says("serving this certificate").await;
    let told = certificate().await;
    assert_eq!((told.names, told.problem), (vec!["two.example".to_owned()], None));
}

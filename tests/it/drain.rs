//! The end under load: what is in flight is finished, everybody is told, and nobody can hold it up for ever.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::house::{AGENT, BOTH, House, PROXY, STRANGER, h2_request, request, whole};
use crate::process::Process;

#[tokio::test]
async fn hundreds_of_requests_and_websockets_in_flight_end_well() {
    let house = House::open().await;
    let source = |number: usize| if number.is_multiple_of(3) { AGENT } else { STRANGER };
    let mut h1 = Vec::new();
    for number in 0..100 {
        let mut client = house.h1(source(number)).await;
        client.send(request("GET /held", "")).await.unwrap();
        h1.push(client);
    }
    let mut h2 = Vec::new();
    for number in 0..10 {
        let mut client = house.h2(source(number)).await;
        for _ in 0..20 {
            client = client.ready().await.unwrap();
            h2.push(client.send_request(h2_request("GET /held", &[]), true).unwrap().0);
        }
    }
    let mut uploads = Vec::new();
    for number in 0..20 {
        let mut client = house.h1(source(number)).await;
        client.send(request("POST /echo", "Content-Length: 8\r\n") + "half").await.unwrap();
        uploads.push(client);
    }
    let mut sockets = Vec::new();
    for number in 0..100 {
        sockets.push(house.websocket(BOTH[number % 2], source(number), "/ws").await);
    }
    // 300 are held, 100 have become WebSockets; an upload is heard once it is whole.
    house.gateway.has_heard(400).await;

    let begun = Instant::now();
    let h1 = join_all(h1.into_iter().map(|mut client| async move {
        let response = client.response().await.expect("a whole response");
        assert_eq!((response.status(), response.text().as_str(), response.field("connection")), (200, "held", Some("close")));
        assert!(client.rest().await.is_empty());
    }));
    let h2 = join_all(h2.into_iter().map(|response| async move {
        let mut response = response.await.unwrap();
        assert_eq!((response.status().as_u16(), whole(response.body_mut()).await.unwrap()), (200, b"held".to_vec()));
    }));
    let uploads = join_all(uploads.into_iter().map(|mut client| async move {
        client.send("half").await.unwrap();
        assert_eq!(client.response().await.expect("a whole response").text(), "halfhalf");
    }));
    let sockets = join_all(sockets.into_iter().map(|mut socket| async move {
        let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no close frame") };
        assert_eq!(frame.code, CloseCode::Away);
        while let Some(Ok(_)) = socket.next().await {}
    }));
    let rest = async {
        // Polled after `stop`, so that everything above happens while the end has begun.
        assert!(house.sidecar.is_stopping());
        house.gateway.pass(300);
    };
    tokio::join!(house.sidecar.stop(), rest, h1, h2, uploads, sockets);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(TcpStream::connect(house.address).await.is_err(), "the door is closed");
}

#[tokio::test]
async fn whoever_has_said_nothing_is_not_waited_for() {
    let house = House::with(|config| {
        config.listen.proxy_protocol = true;
        config.limits.handshake_timeout = Duration::from_secs(30);
    })
    .await;
    // Before its handshake, and before its PROXY header.
    let silent = [house.tcp(STRANGER).await, house.tcp(PROXY).await];
    assert_eq!(house.h1(STRANGER).await.ask(request("GET /", "")).await.status(), 200, "those before were accepted as well");
    let begun = Instant::now();
    house.sidecar.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(silent);
}

#[tokio::test]
async fn sigterm_waits_for_what_is_in_flight_and_ends_with_0() {
    let mut process = Process::start(&[], "").await;
    let mut client = process.h1(STRANGER).await;
    client.send(request("GET /held", "")).await.unwrap();
    process.gateway.has_heard(1).await;
    process.signal(Signal::SIGTERM);
    process.says("stopping").await;
    process.gateway.pass(1);
    assert_eq!(client.response().await.unwrap().text(), "held");
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_never_ends_is_cut_when_its_time_is_up() {
    let mut process = Process::start(&["--drain-timeout=300ms"], "").await;
    let mut client = process.h1(STRANGER).await;
    client.send(request("GET /stalls", "")).await.unwrap();
    process.gateway.has_heard(1).await;
    let begun = Instant::now();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended().await.code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(client.response().await.is_none());
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (first, second) in [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGTERM)] {
        let mut process = Process::start(&["--drain-timeout=1h"], "").await;
        let mut client = process.h1(STRANGER).await;
        client.send(request("GET /stalls", "")).await.unwrap();
        process.gateway.has_heard(1).await;
        process.signal(first);
        process.says("stopping").await;
        process.signal(second);
        assert_eq!(process.ended().await.code(), Some(0));
        process.says("a second time").await;
    }
}

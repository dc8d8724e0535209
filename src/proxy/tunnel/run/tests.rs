use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_util::sync::CancellationToken;

use super::*;

/// Returns the options of a WebSocket that drains when `end` is cancelled.
fn options(end: &CancellationToken) -> TunnelOptions {
    TunnelOptions {
        is_websocket: true,
        is_h2: false,
        buffer_budget: TunnelBufferBudget::new(1 << 20),
        close_signal: CloseSignal::new(end),
        quiet_limit: Arc::new(|| Duration::from_secs(4)),
        first_message: None,
        connect_response: None,
        received_bytes: Counter::default(),
        sent_bytes: Counter::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_close_frame_follows_the_current_frame_even_if_the_gateway_is_quiet() {
    let end = CancellationToken::new();
    let ((mut client, near), (far, mut gateway)) = (duplex(16), duplex(1024));
    let frame = [&[0x82, 100][..], &[7; 100]].concat();
    gateway.write_all(&frame).await.unwrap();
    let reading = async {
        // The client has read a part of a frame when loopgate begins to shut down.
        let mut got = [0; 10];
        client.read_exact(&mut got).await.unwrap();
        end.cancel();
        let mut rest = vec![0; frame.len() - got.len() + GOING_AWAY.len()];
        client.read_exact(&mut rest).await.unwrap();
        assert_eq!([&got[..], &rest].concat(), [&frame[..], &GOING_AWAY].concat());
    };
    tokio::select! {
        ended = run(near, far, (Bytes::new(), Bytes::new()), options(&end)) => panic!("{ended:?}"),
        read = tokio::time::timeout(Duration::from_secs(5), reading) => read.expect("the close frame"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_answered_before_the_close_frame() {
    let end = CancellationToken::new();
    let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
    let gateway = async {
        let mut message = [0; 7];
        gateway.read_exact(&mut message).await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        gateway.write_all(&[0x81, 1, b'b']).await.unwrap();
        std::future::pending::<()>().await
    };
    let client = async {
        client.write_all(&[0x81, 0x81, 0, 0, 0, 0, b'a']).await.unwrap();
        end.cancel();
        let mut got = [0; 7];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [0x81, 1, b'b', 0x88, 0x02, 0x03, 0xe9]);
    };
    tokio::select! {
        ended = run(near, far, (Bytes::new(), Bytes::new()), options(&end)) => panic!("{ended:?}"),
        () = gateway => {}
        read = tokio::time::timeout(Duration::from_secs(5), client) => read.expect("an answer and the close frame"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_never_rests_puts_off_the_close_frame_only_to_the_limit() {
    let end = CancellationToken::new();
    let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
    let gateway = async {
        loop {
            gateway.write_all(&[0x81, 1, b'x']).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let started = Instant::now();
    let client = async {
        end.cancel();
        let mut got = Vec::new();
        while !got.ends_with(&GOING_AWAY) {
            got.push(client.read_u8().await.unwrap());
        }
    };
    tokio::select! {
        ended = run(near, far, (Bytes::new(), Bytes::new()), options(&end)) => panic!("{ended:?}"),
        () = gateway => {}
        read = tokio::time::timeout(Duration::from_secs(5), client) => read.expect("the close frame"),
    }
    assert!(started.elapsed() >= Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_revoked_client_gets_status_1008_at_the_end_of_the_current_frame() {
    for (sent, expected) in [(100, true), (40, false)] {
        let options = options(&CancellationToken::new());
        let signal = options.close_signal.clone();
        let ((mut client, near), (far, mut gateway)) = (duplex(1024), duplex(1024));
        let frame = [&[0x82, 100][..], &[7; 100]].concat();
        gateway.write_all(&frame[..2 + 20]).await.unwrap();
        let reading = async {
            let mut got = vec![0; 22];
            client.read_exact(&mut got).await.unwrap();
            signal.revoke();
            client.write_all(b"must not arrive").await.unwrap();
            gateway.write_all(&frame[22..2 + sent]).await.unwrap();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.ends_with(&POLICY_VIOLATION), expected);
            assert_eq!(got.len(), 2 + sent + if expected { 4 } else { 0 });
            let mut up = Vec::new();
            gateway.read_to_end(&mut up).await.unwrap();
            assert!(up.is_empty(), "{up:?}");
        };
        let joined = run(near, far, (Bytes::new(), Bytes::new()), options);
        let (ended, read) = tokio::join!(joined, tokio::time::timeout(Duration::from_secs(2), reading));
        assert!(matches!(ended, Err(TunnelError::Unauthorized)), "{ended:?}");
        read.expect("the end within a second");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_still_sending_gets_all_that_the_gateway_sent() {
    let ((mut client, near), (far, gateway)) = (duplex(64), duplex(100_000));
    let (read, mut write) = tokio::io::split(gateway);
    let sent = [&[0x82, 126, 0x7f, 0xff][..], &[7; 0x7fff], &[0x88, 2, 3, 0xf0]].concat();
    write.write_all(&sent).await.unwrap();
    // Closed in both directions: what the client writes from now on fails.
    drop((read, write));
    let chatting = async {
        let mut got = Vec::new();
        while got.len() < sent.len() {
            client.write_all(&[0x81, 0x80, 0, 0, 0, 0]).await.unwrap();
            got.push(client.read_u8().await.unwrap());
        }
        assert!(got == sent);
        // The client does not close.
        std::future::pending::<()>().await
    };
    tokio::select! {
        ended = run(near, far, (Bytes::new(), Bytes::new()), options(&CancellationToken::new())) => ended.unwrap(),
        () = chatting => {}
    }
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

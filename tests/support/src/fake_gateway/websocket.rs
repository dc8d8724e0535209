//! WebSockets of the gateway.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::{WebSocketStream, tungstenite};

use crate::raw_http::RawHttp;

/// Accepts the handshake with `key`, and behaves as `path` says. `pushed` counts what `/ws-floods`
/// sends.
pub async fn serve(mut client: RawHttp<TcpStream>, path: &str, key: &str, pushed: &AtomicUsize) -> io::Result<()> {
    let accept = derive_accept_key(key.as_bytes());
    client
        .send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        ))
        .await?;
    if path == "/ws-resets" {
        client.stream.set_zero_linger()?;
    }
    if path == "/gateway" {
        return answer_connects(client).await;
    }
    if path == "/ws-floods" {
        return send_without_end(client.stream, pushed).await;
    }
    echo(client, path != "/ws").await
}

/// Sends one endless message, and counts the bytes that were sent.
async fn send_without_end(mut stream: TcpStream, pushed: &AtomicUsize) -> io::Result<()> {
    // With the default size the kernel would buffer megabytes that the client does not read.
    socket2::SockRef::from(&stream).set_send_buffer_size(16 * 1024)?;
    stream.write_all(&[0x82, 0x7f, 0, 0, 0xff, 0, 0, 0, 0, 0]).await?;
    let block = [0; 16 * 1024];
    loop {
        pushed.fetch_add(stream.write(&block).await?, Ordering::SeqCst);
    }
}

/// Sends back every message, and the close frame; `dies` makes it drop the connection after the
/// first message.
async fn echo(client: RawHttp<TcpStream>, dies: bool) -> io::Result<()> {
    let (stream, early) = client.into_parts();
    let mut socket = WebSocketStream::from_partially_read(stream, early, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if dies {
            return Ok(());
        }
        if message.is_text() || message.is_binary() {
            socket.send(message).await.map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// Asks for a `connect`, and handles messages concurrently until one is accepted, as OpenClaw does.
/// The `params.answer` of a `connect` decides: `refuse` refuses it, `silent` closes the connection
/// without an answer, and anything else accepts it. Messages after an accepted `connect` are
/// echoed.
async fn answer_connects(client: RawHttp<TcpStream>) -> io::Result<()> {
    let (stream, early) = client.into_parts();
    let mut socket = WebSocketStream::from_partially_read(stream, early, Role::Server, None).await;
    let send = async |socket: &mut WebSocketStream<TcpStream>, message: serde_json::Value| {
        socket.send(tungstenite::Message::text(message.to_string())).await.map_err(io::Error::other)
    };
    send(&mut socket, serde_json::json!({ "type": "event", "event": "connect.challenge" })).await?;
    let mut handled = futures_util::stream::FuturesUnordered::new();
    let mut is_connected = false;
    loop {
        tokio::select! {
            message = socket.next() => {
                let Some(Ok(message)) = message else { return Ok(()) };
                let request = serde_json::from_slice::<serde_json::Value>(&message.clone().into_data());
                let Ok(request) = request else { continue };
                if is_connected {
                    socket.send(message).await.map_err(io::Error::other)?;
                    continue;
                }
                handled.push(async move {
                    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
                    request
                });
            }
            Some(request) = handled.next() => {
                let answer = request["params"]["answer"].as_str().unwrap_or_default();
                let ok = request["method"] == "connect" && answer != "refuse";
                if answer != "silent" {
                    send(&mut socket, serde_json::json!({ "type": "res", "id": request["id"], "ok": ok })).await?;
                }
                if !ok || answer == "silent" {
                    let frame = CloseFrame { code: CloseCode::Policy, reason: "the gateway's reason".into() };
                    socket.close(Some(frame)).await.map_err(io::Error::other)?;
                }
                is_connected |= ok;
            }
        }
    }
}

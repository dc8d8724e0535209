//! A gateway that records every request and its source, and behaves as the path of each request
//! says.

mod responses;
mod websocket;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::raw_http::{Message, RawHttp};
use crate::tasks::Tasks;

/// A request as the gateway received it.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    pub peer: SocketAddr,
    /// The number of the connection that it came over, counted from 0.
    pub connection: usize,
    pub message: Message,
}

impl ReceivedRequest {
    /// Returns the source address of the request.
    pub fn source(&self) -> IpAddr {
        self.peer.ip()
    }
}

impl std::ops::Deref for ReceivedRequest {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

/// The state that all connections of the gateway share.
struct Shared {
    requests: Mutex<Vec<ReceivedRequest>>,
    /// The number of requests so far.
    count: watch::Sender<usize>,
    connections: AtomicUsize,
    /// The number of connections that have ended.
    closed: watch::Sender<usize>,
    /// A held response, or an event of `/events`, takes one of these permits before it is sent.
    permits: Semaphore,
    /// The bytes of the responses for `/file` that are being written. Node.js holds each of them
    /// whole in memory until it is written.
    buffered: AtomicUsize,
    /// The highest value of `buffered` so far.
    most_buffered: AtomicUsize,
    /// Bytes sent on `/ws-floods`.
    pushed: AtomicUsize,
}

/// The gateway. It ends when it is dropped.
pub struct FakeGateway {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Tasks,
    /// Cancelled to drop every connection at once.
    alive: Mutex<CancellationToken>,
}

impl FakeGateway {
    /// Starts the gateway on a free port of loopback.
    pub async fn start() -> Self {
        let shared = Shared {
            requests: Mutex::default(),
            count: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
            closed: watch::Sender::new(0),
            permits: Semaphore::new(0),
            buffered: AtomicUsize::new(0),
            most_buffered: AtomicUsize::new(0),
            pushed: AtomicUsize::new(0),
        };
        let mut gateway = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            shared: Arc::new(shared),
            tasks: Tasks::default(),
            alive: Mutex::default(),
        };
        gateway.address = gateway.listen(gateway.address);
        gateway
    }

    fn listen(&self, address: SocketAddr) -> SocketAddr {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let alive = CancellationToken::new();
        *self.alive.lock().unwrap() = alive.clone();
        self.tasks.spawn(accept(listener, Arc::clone(&self.shared), self.tasks.clone(), alive));
        address
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Waits for `count` requests, and returns all so far.
    pub async fn wait_for_requests(&self, count: usize) -> Vec<ReceivedRequest> {
        self.shared.count.subscribe().wait_for(|received| *received >= count).await.unwrap();
        self.requests()
    }

    /// The number of connections that it has accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until `count` of its connections have ended.
    pub async fn wait_for_closed(&self, count: usize) {
        self.shared.closed.subscribe().wait_for(|closed| *closed >= count).await.unwrap();
    }

    /// Returns the most bytes that a gateway would have held at once for `/file?SIZE`, if it held
    /// each file whole.
    pub fn most_buffered(&self) -> usize {
        self.shared.most_buffered.load(Ordering::SeqCst)
    }

    /// Returns the bytes that such a gateway would hold now.
    pub fn buffered_bytes(&self) -> usize {
        self.shared.buffered.load(Ordering::SeqCst)
    }

    /// Returns how many bytes the kernel has taken of the endless messages on `/ws-floods`.
    pub fn pushed_bytes(&self) -> usize {
        self.shared.pushed.load(Ordering::SeqCst)
    }

    /// Lets `count` held responses or events continue.
    pub fn release_held(&self, count: usize) {
        self.shared.permits.add_permits(count);
    }

    /// Stops listening and drops every connection, as when its process is killed.
    pub fn kill(&self) {
        self.alive.lock().unwrap().cancel();
    }

    /// Listens again on the same address.
    pub fn restart(&self) {
        self.listen(self.address);
    }
}

impl Drop for FakeGateway {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: Tasks, alive: CancellationToken) {
    loop {
        let (stream, peer) = tokio::select! {
            () = alive.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap(),
        };
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let (shared, alive) = (Arc::clone(&shared), alive.clone());
        tasks.spawn(async move {
            let serving = async {
                let is_tls = refuse_tls(&stream, &shared).await;
                if !is_tls {
                    let _ = serve(stream, peer, number, &shared).await;
                }
                is_tls
            };
            tokio::select! {
                () = alive.cancelled() => {}
                is_tls = serving => if is_tls { return },
            }
            shared.closed.send_modify(|closed| *closed += 1);
        });
    }
}

/// Refuses a connection that begins with TLS, as Node.js does, and does not count it. Returns
/// whether the connection began with TLS.
async fn refuse_tls(stream: &TcpStream, shared: &Shared) -> bool {
    let mut first = [0];
    let is_tls = matches!(stream.peek(&mut first).await, Ok(1)) && first == [0x16];
    if is_tls {
        shared.connections.fetch_sub(1, Ordering::SeqCst);
        let _ = stream.try_write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    }
    is_tls
}

async fn serve(stream: TcpStream, peer: SocketAddr, connection: usize, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut client = RawHttp::new(stream);
    while let Some(mut message) = client.read_head().await {
        let path = message.start_line().split(' ').nth(1).unwrap_or_default().to_owned();
        if path == "/unread" {
            record(shared, peer, connection, message);
            return shared.never().await;
        }
        if path == "/unwanted" {
            record(shared, peer, connection, message);
            return client
                .send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much")
                .await;
        }
        if path == "/conversation" {
            record(shared, peer, connection, message);
            if !echo_chunks(&mut client).await? {
                return Ok(());
            }
            continue;
        }
        if path.starts_with("/large-early?") {
            let length = message.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let read = client.take_buffered().len();
            send_while_reading(&mut client.stream, size(&path), length - read).await?;
            record(shared, peer, connection, message);
            continue;
        }
        if path == "/early" {
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").await?;
            if !client.read_body(&mut message, false).await {
                return Ok(());
            }
            record(shared, peer, connection, message);
            continue;
        }
        if message.field("expect").is_some() {
            if path == "/unwelcome" {
                record(shared, peer, connection, message);
                client
                    .send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .await?;
                return Ok(());
            }
            client.send("HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let whole = client.read_body(&mut message, false).await;
        let read_body = std::mem::take(&mut message.body);
        let is_head = message.head.starts_with("HEAD ");
        let key = message.field("sec-websocket-key").map(str::to_owned);
        message.body.clone_from(&read_body);
        if !whole {
            message.truncated = true;
        }
        record(shared, peer, connection, message);
        if !whole {
            return Ok(());
        }
        if let "/ws" | "/ws-dies" | "/ws-resets" | "/ws-floods" | "/gateway" =
            path.split('?').next().unwrap_or_default()
        {
            return websocket::serve(client, &path, &key.unwrap_or_default(), &shared.pushed).await;
        }
        if respond(&mut client, &path, &read_body, is_head, shared).await?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// Sends the head of a response, and then each chunk of the request's body as a chunk of the
/// response, as soon as it arrives; returns whether the body was whole.
async fn echo_chunks(client: &mut RawHttp<TcpStream>) -> io::Result<bool> {
    client.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    while let Some(chunk) = client.read_chunk().await {
        if chunk.is_empty() {
            let is_whole = client.read_trailers().await.is_some();
            client.send("0\r\n\r\n").await?;
            return Ok(is_whole);
        }
        client.send([format!("{:x}\r\n", chunk.len()).as_bytes(), &chunk, b"\r\n"].concat()).await?;
    }
    Ok(false)
}

/// Responds to a request for `path`; breaks if the connection ends after that.
async fn respond(
    client: &mut RawHttp<TcpStream>,
    path: &str,
    body: &[u8],
    is_head: bool,
    shared: &Shared,
) -> io::Result<ControlFlow<()>> {
    let name = path.split('?').next().unwrap_or_default();
    if let Some((response, then)) = responses::fixed(name) {
        client.send(response).await?;
        return Ok(then);
    }
    match name {
        "/echo" => {
            client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await?;
            client.send(body).await?;
        }
        "/held" => {
            shared.permits.acquire().await.unwrap().forget();
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld").await?;
        }
        "/events" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            client.send(head).await?;
            for number in 0..3 {
                shared.permits.acquire().await.unwrap().forget();
                client.send(format!("e\r\ndata: event {number}\n\r\n")).await?;
            }
            client.send("0\r\n\r\n").await?;
        }
        "/hints" => {
            client.send("HTTP/1.1 102 Processing\r\n\r\n").await?;
            let fields = format!("Link: </a.css>; rel=preload\r\nX-For: {path}\r\nKeep-Alive: 1\r\nContent-Length: 2");
            client.send(format!("HTTP/1.1 103 Early Hints\r\n{fields}\r\n\r\n")).await?;
            if path.ends_with("held") {
                shared.permits.acquire().await.unwrap().forget();
            }
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
        }
        "/many-fields" => {
            let fields = "X-A: b\r\n".repeat(size(path));
            client.send(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n")).await?;
        }
        "/large-head" => {
            let value = "b".repeat(size(path));
            client.send(format!("HTTP/1.1 200 OK\r\nX-A: {value}\r\nContent-Length: 0\r\n\r\n")).await?;
        }
        "/stalls-halfway" => {
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await?;
            client.until_end().await;
            return Ok(ControlFlow::Break(()));
        }
        coded if coded.starts_with("/coded/") => {
            let has_body = coded == "/coded/200" && !is_head;
            client.send(responses::coded(path, has_body)).await?;
            return Ok(if has_body { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
        }
        slow if slow.starts_with("/slow") => {
            tokio::time::sleep(Duration::from_millis(size(path) as u64)).await;
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").await?;
        }
        "/stalls" => shared.never().await?,
        "/file" => {
            let size = size(path);
            let _held = HeldWhole::new(shared, size);
            // Otherwise the kernel buffers megabytes of a response that is not read.
            socket2::SockRef::from(&client.stream).set_send_buffer_size(64 * 1024)?;
            client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await?;
            let block = [0; 64 * 1024];
            for at in (0..size).step_by(block.len()) {
                client.stream.write_all(&block[..block.len().min(size - at)]).await?;
            }
        }
        "/large" => {
            let size = size(path);
            client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await?;
            send_pattern(&mut client.stream, size, false).await?;
        }
        "/large-chunks" => {
            let size = size(path);
            client.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            send_pattern(&mut client.stream, size, true).await?;
            client.send(format!("0\r\nX-Sum: {size}\r\n\r\n")).await?;
        }
        _ => {
            let body = if is_head { "" } else { "hello" };
            client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}")).await?;
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The number after the `?` of a path.
fn size(path: &str) -> usize {
    path.split_once('?').and_then(|(_, size)| size.parse().ok()).unwrap()
}

impl Shared {
    /// Waits until the task is dropped.
    async fn never(&self) -> io::Result<()> {
        std::future::pending().await
    }
}

/// Counts a file as held in memory until it is dropped.
struct HeldWhole<'a> {
    shared: &'a Shared,
    size: usize,
}

impl<'a> HeldWhole<'a> {
    fn new(shared: &'a Shared, size: usize) -> Self {
        let now = shared.buffered.fetch_add(size, Ordering::SeqCst) + size;
        shared.most_buffered.fetch_max(now, Ordering::SeqCst);
        Self { shared, size }
    }
}

impl Drop for HeldWhole<'_> {
    fn drop(&mut self) {
        self.shared.buffered.fetch_sub(self.size, Ordering::SeqCst);
    }
}

fn record(shared: &Shared, peer: SocketAddr, connection: usize, message: Message) {
    shared.requests.lock().unwrap().push(ReceivedRequest { peer, connection, message });
    shared.count.send_modify(|count| *count += 1);
}

/// Returns the byte at offset `at` of a body whose bytes depend on their offset, so that a lost or
/// repeated block is detected.
pub fn pattern_byte(at: usize) -> u8 {
    u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap()
}

async fn send_pattern<W>(stream: &mut W, size: usize, in_chunks: bool) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let mut at = 0;
    while at < size {
        let block: Vec<u8> = (at..size.min(at + 65_536)).map(pattern_byte).collect();
        at += block.len();
        let (before, after) = if in_chunks { (format!("{:x}\r\n", block.len()), "\r\n") } else { Default::default() };
        stream.write_all(&[before.as_bytes(), &block, after.as_bytes()].concat()).await?;
    }
    Ok(())
}

/// Sends a response of `size` bytes, and reads a body of `length` bytes meanwhile: neither waits
/// for the other.
async fn send_while_reading(stream: &mut TcpStream, size: usize, length: usize) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let reading = async {
        let (mut remaining, mut block) = (length, vec![0; 65_536]);
        while remaining > 0 {
            match reader.read(&mut block[..remaining.min(65_536)]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => remaining -= count,
            }
        }
        Ok(())
    };
    let sending = async {
        writer.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes()).await?;
        send_pattern(&mut writer, size, false).await
    };
    tokio::try_join!(reading, sending).map(|_| ())
}

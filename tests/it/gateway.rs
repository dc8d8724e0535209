//! A gateway that remembers exactly what it heard and from where, and behaves as the path of each request asks.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use loopgate::shutdown::Shutdown;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use crate::wire::{Message, Wire};

/// A request as the gateway heard it.
#[derive(Clone, Debug)]
pub struct Heard {
    pub peer: SocketAddr,
    /// Which of its connections it came over, counted from 0.
    pub connection: usize,
    pub message: Message,
}

impl Heard {
    /// Where it seemed to come from.
    pub fn source(&self) -> IpAddr {
        self.peer.ip()
    }
}

impl std::ops::Deref for Heard {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

/// What its connections share.
struct Memory {
    heard: Mutex<Vec<Heard>>,
    /// How many requests were heard.
    count: watch::Sender<usize>,
    connections: AtomicUsize,
    /// How many of them are over.
    lost: watch::Sender<usize>,
    /// What a request for `/held` or `/events` needs one of before it goes on.
    passes: Semaphore,
}

pub struct Gateway {
    pub address: SocketAddr,
    memory: Arc<Memory>,
    tasks: Shutdown,
    /// Cancelled when it is to drop everything at once.
    alive: Mutex<CancellationToken>,
}

impl Gateway {
    pub async fn start() -> Self {
        let memory = Memory {
            heard: Mutex::default(),
            count: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
            lost: watch::Sender::new(0),
            passes: Semaphore::new(0),
        };
        let gateway = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            memory: Arc::new(memory),
            tasks: Shutdown::new(),
            alive: Mutex::default(),
        };
        let address = gateway.listen(gateway.address);
        Self { address, ..gateway }
    }

    fn listen(&self, address: SocketAddr) -> SocketAddr {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let alive = CancellationToken::new();
        *self.alive.lock().unwrap() = alive.clone();
        self.tasks.spawn(accept(listener, Arc::clone(&self.memory), self.tasks.clone(), alive));
        address
    }

    /// Everything heard so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.memory.heard.lock().unwrap().clone()
    }

    /// Waits until `count` requests have been heard, and returns them all.
    pub async fn has_heard(&self, count: usize) -> Vec<Heard> {
        self.memory.count.subscribe().wait_for(|heard| *heard >= count).await.unwrap();
        self.heard()
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.memory.connections.load(Ordering::SeqCst)
    }

    /// Waits until `count` of its connections are over.
    pub async fn has_lost(&self, count: usize) {
        self.memory.lost.subscribe().wait_for(|lost| *lost >= count).await.unwrap();
    }

    /// Lets `count` held responses or events go on.
    pub fn pass(&self, count: usize) {
        self.memory.passes.add_permits(count);
    }

    /// Closes its door and drops every connection, as a process that is killed does.
    pub fn kill(&self) {
        self.alive.lock().unwrap().cancel();
    }

    /// Listens again on the same address.
    pub fn restart(&self) {
        self.listen(self.address);
    }
}

async fn accept(listener: TcpListener, memory: Arc<Memory>, tasks: Shutdown, alive: CancellationToken) {
    loop {
        let (stream, peer) = tokio::select! {
            () = alive.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap(),
        };
        let number = memory.connections.fetch_add(1, Ordering::SeqCst);
        let (memory, alive) = (Arc::clone(&memory), alive.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = alive.cancelled() => {}
                _ = converse(stream, peer, number, &memory) => {}
            }
            memory.lost.send_modify(|lost| *lost += 1);
        });
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, connection: usize, memory: &Memory) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = Wire::new(stream);
    while let Some(mut message) = wire.head().await {
        let path = message.start().split(' ').nth(1).unwrap_or_default().to_owned();
        if path == "/unread" {
            note(memory, peer, connection, message);
            return memory.never().await;
        }
        if path == "/unwanted" {
            note(memory, peer, connection, message);
            return wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much").await;
        }
        if message.field("expect").is_some() {
            if path == "/unwelcome" {
                note(memory, peer, connection, message);
                wire.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
                return Ok(());
            }
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let whole = wire.body(&mut message, false).await;
        let body = std::mem::take(&mut message.body);
        let head = message.head.starts_with("HEAD ");
        let key = message.field("sec-websocket-key").map(str::to_owned);
        message.body.clone_from(&body);
        if !whole {
            message.start_of_nothing();
        }
        note(memory, peer, connection, message);
        if !whole {
            return Ok(());
        }
        match path.split('?').next().unwrap_or_default() {
            "/echo" => {
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await?;
                wire.send(&body).await?;
            }
            "/held" => {
                memory.passes.acquire().await.unwrap().forget();
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld").await?;
            }
            "/events" => {
                wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                for number in 0..3 {
                    memory.passes.acquire().await.unwrap().forget();
                    wire.send(format!("e\r\ndata: event {number}\n\r\n")).await?;
                }
                wire.send("0\r\n\r\n").await?;
            }
            "/trailers" => {
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 4\r\n\r\n")
                    .await?;
            }
            "/hints" => {
                wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n").await?;
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
            }
            "/upgrade-required" => {
                wire.send("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n")
                    .await?;
            }
            "/nothing" => wire.send("HTTP/1.1 204 No Content\r\n\r\n").await?,
            "/same" => wire.send("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 5\r\n\r\n").await?,
            "/hop" => {
                let fields = "Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nX-Kept: 1";
                wire.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: 2\r\n\r\nok")).await?;
                return Ok(());
            }
            "/to-the-end" => {
                wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end").await?;
                return Ok(());
            }
            "/dies" => return Ok(()),
            "/dies-in-its-head" => return wire.send("HTTP/1.1 200 O").await,
            "/many-fields" => {
                wire.send(format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X-A: b\r\n".repeat(200))).await?;
            }
            "/large-head" => {
                wire.send(format!("HTTP/1.1 200 OK\r\nX-A: {}\r\nContent-Length: 0\r\n\r\n", "b".repeat(100_000))).await?;
            }
            "/dies-halfway" => {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await?;
                return Ok(());
            }
            "/dies-between-chunks" => {
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await?;
                return Ok(());
            }
            "/stalls-halfway" => {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await?;
                wire.until_end().await;
                return Ok(());
            }
            "/nonsense" => {
                wire.send("\x15\x03\x01\x00\x02\x02\x16 this is not HTTP\r\n\r\n").await?;
                return Ok(());
            }
            "/stalls" => return memory.never().await,
            "/large" => {
                let size: usize = path.split_once('?').and_then(|(_, size)| size.parse().ok()).unwrap();
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await?;
                send_pattern(&mut wire.stream, size).await?;
            }
            "/ws" | "/ws-dies" => {
                let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
                wire.send(format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                ))
                .await?;
                return echo(wire, path == "/ws-dies").await;
            }
            _ => {
                wire.send(if head {
                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
                } else {
                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
                })
                .await?
            }
        }
    }
    Ok(())
}

impl Memory {
    async fn never(&self) -> io::Result<()> {
        std::future::pending().await
    }
}

impl Message {
    /// Marks a request whose end never came.
    fn start_of_nothing(&mut self) {
        self.trailers = "(broken off)".into();
    }
}

fn note(memory: &Memory, peer: SocketAddr, connection: usize, message: Message) {
    memory.heard.lock().unwrap().push(Heard { peer, connection, message });
    memory.count.send_modify(|count| *count += 1);
}

/// Sends back every message, and the close frame; `dies` makes it drop the connection after the first message.
async fn echo(wire: Wire<TcpStream>, dies: bool) -> io::Result<()> {
    let (stream, early) = wire.into_parts();
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

/// Bytes that tell where they stand, so that a lost or doubled block shows.
pub fn pattern(at: usize) -> u8 {
    u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap()
}

async fn send_pattern(stream: &mut TcpStream, size: usize) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let block: Vec<u8> = (at..size.min(at + 65_536)).map(pattern).collect();
        stream.write_all(&block).await?;
        at += block.len();
    }
    Ok(())
}

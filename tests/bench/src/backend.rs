//! The backend of every side: an HTTP/1.1 and WebSocket server that uses little CPU time.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | a few bytes |
//! | `GET /bytes/N` | N zeros |
//! | `GET /file/N` | N bytes, which stay in memory until all are sent, as in Node.js |
//! | `POST /upload` | `ok` after the whole body, which needs a `Content-Length` |
//! | `GET /events` | a server-sent event each 10 ms, with the time when it was sent |
//! | `GET /ws` | a WebSocket that echoes |

use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;

use crate::process::{Tree, monotonic};
use crate::websocket;

const BLOCK: usize = 256 * 1024;
static ZEROS: [u8; BLOCK] = [0; BLOCK];
const EVENTS_APART: Duration = Duration::from_millis(10);
const SMALL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\r\nThe gateway's word";

/// The backend's process. Dropping the value ends it.
pub struct Backend {
    /// The address on which the backend listens.
    pub address: SocketAddr,
    child: Child,
}

impl Backend {
    /// Starts a backend on `address`, and waits until it accepts connections.
    ///
    /// # Errors
    /// The process can't be started, or accepts no connection within five seconds.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let child = Command::new(std::env::current_exe()?).arg("backend").arg(address.to_string()).spawn()?;
        let backend = Self { address, child };
        for _ in 0..500 {
            if std::net::TcpStream::connect(address).is_ok() {
                return Ok(backend);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::other("the backend does not answer"))
    }

    /// The backend's process, for measurements.
    pub fn tree(&self) -> Tree {
        Tree::of(self.child.id())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves the connections of `listener` on this thread, without end.
///
/// # Errors
/// Connections can't be accepted.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let tasks = LocalSet::new();
    tasks
        .run_until(async {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::task::spawn_local(connection(stream));
            }
        })
        .await
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(4096);
    while let Some(request) = read_head(&mut stream, &mut buffer).await? {
        match request {
            Request::Small => stream.write_all(SMALL).await?,
            Request::Bytes(length) => send_zeros(&mut stream, length).await?,
            Request::File(length) => send_file(&mut stream, length).await?,
            Request::Upload(length) => {
                drain(&mut stream, &mut buffer, length).await?;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
            }
            Request::Events => return send_events(&mut stream).await,
            Request::WebSocket => return echo(&mut stream, buffer).await,
            Request::Unknown => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await?,
        }
    }
    Ok(())
}

enum Request {
    Small,
    Bytes(u64),
    File(usize),
    Upload(u64),
    Events,
    WebSocket,
    Unknown,
}

/// Reads the next request's head, and removes it from `buffer`; returns `None` at the end of the
/// connection.
async fn read_head(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<Request>> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Request::new(&mut fields);
        if let httparse::Status::Complete(size) = head.parse(buffer).map_err(io::Error::other)? {
            let request = understand(&head);
            buffer.advance(size);
            return Ok(Some(request));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn understand(head: &httparse::Request<'_, '_>) -> Request {
    let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
    match (head.path.unwrap_or_default(), length) {
        ("/", _) => Request::Small,
        ("/events", _) => Request::Events,
        ("/ws", _) => Request::WebSocket,
        ("/upload", Some(length)) => Request::Upload(length),
        (path, _) => match path.strip_prefix("/bytes/") {
            Some(length) => length.parse().map_or(Request::Unknown, Request::Bytes),
            None => path
                .strip_prefix("/file/")
                .and_then(|length| length.parse().ok())
                .map_or(Request::Unknown, Request::File),
        },
    }
}

async fn send_zeros(stream: &mut TcpStream, mut length: u64) -> io::Result<()> {
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await?;
    while length > 0 {
        let piece = BLOCK.min(usize::try_from(length).unwrap_or(BLOCK));
        stream.write_all(&ZEROS[..piece]).await?;
        length -= piece as u64;
    }
    Ok(())
}

async fn send_file(stream: &mut TcpStream, length: usize) -> io::Result<()> {
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await?;
    // The bytes aren't zero, because the kernel gives zeroed pages memory only when they are
    // written.
    stream.write_all(&vec![1; length]).await
}

async fn drain(stream: &mut TcpStream, buffer: &mut BytesMut, mut length: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let early = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    buffer.advance(early);
    length -= early as u64;
    while length > 0 {
        let most = BLOCK.min(usize::try_from(length).unwrap_or(BLOCK));
        match stream.read(&mut block[..most]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => length -= read as u64,
        }
    }
    Ok(())
}

async fn send_events(stream: &mut TcpStream) -> io::Result<()> {
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\
                     Transfer-Encoding: chunked\r\n\r\n",
        )
        .await?;
    let mut ticks = tokio::time::interval(EVENTS_APART);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let event = format!("data: {:020} {:80}\n\n", monotonic(), "");
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
    }
}

/// Echoes each frame's payload, in an unmasked frame.
async fn echo(stream: &mut TcpStream, mut buffer: BytesMut) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        websocket::ACCEPT
    );
    stream.write_all(head.as_bytes()).await?;
    let mut remaining = 0_u64;
    let mut answer = Vec::new();
    loop {
        answer.clear();
        while !buffer.is_empty() {
            if remaining == 0 {
                let Some(header) = websocket::parse(&buffer) else { break };
                if header.close {
                    return Ok(());
                }
                buffer.advance(header.size);
                answer.extend(websocket::header(header.payload, false));
                remaining = header.payload;
            }
            let piece = buffer.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
            answer.extend_from_slice(&buffer[..piece]);
            buffer.advance(piece);
            remaining -= piece as u64;
        }
        stream.write_all(&answer).await?;
        if remaining > BLOCK as u64 / 2 {
            buffer.reserve(BLOCK);
        } else {
            buffer.reserve(2048);
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

//! A client that uses little CPU time: one connection, and one request or message at a time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::websocket;

/// The address of a side, and the client's TLS configuration for it.
#[derive(Clone)]
pub struct Target {
    /// The side that is measured.
    pub address: SocketAddr,
    /// `None` for plain TCP.
    pub tls: Option<Arc<ClientConfig>>,
}

/// A byte stream, with or without TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// A connection to the side that is measured.
pub struct Connection {
    /// The byte stream.
    pub stream: Box<dyn Stream>,
    /// Whether the TLS session was resumed with a ticket.
    pub resumed: bool,
    buffer: BytesMut,
}

impl Target {
    /// Returns a copy for a client that keeps its own tickets, which no other client uses.
    pub fn with_tickets(&self) -> Self {
        let tls = self.tls.as_deref().map(|config| {
            let mut config = config.clone();
            config.resumption = Resumption::in_memory_sessions(4);
            Arc::new(config)
        });
        Self { address: self.address, tls }
    }

    /// Connects, and makes a TLS handshake if the side has TLS.
    ///
    /// # Errors
    /// The connection or the handshake failed.
    pub async fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        self.shake_hands(stream).await
    }

    /// Makes a TLS handshake on `stream` if the side has TLS.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn shake_hands(&self, stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let Some(config) = &self.tls else {
            return Ok(Connection { stream: Box::new(stream), resumed: false, buffer: BytesMut::new() });
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok(Connection { stream: Box::new(stream), resumed, buffer: BytesMut::new() })
    }
}

/// The head of a request for `path` with `more` fields, each of which ends with CRLF.
pub fn head(method: &str, path: &str, more: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: loopgate-bench\r\nAccept: */*\r\n{more}\r\n")
        .into_bytes()
}

impl Connection {
    /// Sends `request` and reads the whole response.
    ///
    /// # Errors
    /// The connection broke, or the response is not a 200 with a length.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<()> {
        self.send(request).await?;
        let length = self.answer(200).await?.ok_or_else(|| io::Error::other("an answer without a length"))?;
        self.skip(length, |_| {}).await
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Reads the head of a response, which must have `status`; returns its `Content-Length`, if
    /// any.
    ///
    /// # Errors
    /// The connection broke, or the response has another status.
    pub async fn answer(&mut self, status: u16) -> io::Result<Option<u64>> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; 32];
            let mut head = httparse::Response::new(&mut fields);
            if let httparse::Status::Complete(size) = head.parse(&self.buffer).map_err(io::Error::other)? {
                if head.code != Some(status) {
                    return Err(io::Error::other(format!("status {:?}", head.code)));
                }
                let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
                let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
                self.buffer.advance(size);
                return Ok(length);
            }
            self.more().await?;
        }
    }

    /// Reads `length` bytes, and calls `note` with the size of each piece.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn skip(&mut self, mut length: u64, note: impl Fn(u64)) -> io::Result<()> {
        loop {
            let piece = self.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            self.buffer.advance(piece);
            length -= piece as u64;
            note(piece as u64);
            if length == 0 {
                return Ok(());
            }
            if length > 16 * 1024 {
                self.buffer.reserve(256 * 1024);
            }
            self.more().await?;
        }
    }

    /// Reads up to the next `end`, and returns what is before it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn read_until(&mut self, end: &[u8]) -> io::Result<BytesMut> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let before = self.buffer.split_to(at);
                self.buffer.advance(end.len());
                return Ok(before);
            }
            self.more().await?;
        }
    }

    /// Sends a WebSocket `frame` repeatedly and reads the echoes at the same time; calls `note`
    /// with the size of each piece in either direction.
    ///
    /// # Errors
    /// The connection broke. The function ends only then.
    pub async fn echo_for_ever(self, frame: &[u8], note: impl Fn(u64)) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(self.stream);
        let sending = async {
            loop {
                for piece in frame.chunks(64 * 1024) {
                    writer.write_all(piece).await?;
                    note(piece.len() as u64);
                }
                writer.flush().await?;
            }
        };
        let receiving = async {
            let mut block = vec![0; 256 * 1024];
            loop {
                match reader.read(&mut block).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => note(read as u64),
                }
            }
        };
        tokio::select! {
            end = sending => end,
            end = receiving => end,
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.buffer.capacity() - self.buffer.len() < 1024 {
            self.buffer.reserve(2048);
        }
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Upgrades the connection to a WebSocket.
    ///
    /// # Errors
    /// The connection broke, or the response is not a 101.
    pub async fn upgrade(&mut self) -> io::Result<()> {
        let fields = format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n",
            websocket::KEY
        );
        self.send(&head("GET", "/ws", &fields)).await?;
        self.answer(101).await.map(drop)
    }

    /// Sends a WebSocket `frame`, and waits for its echo.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn echo(&mut self, frame: &[u8]) -> io::Result<()> {
        self.send(frame).await?;
        loop {
            if let Some(header) = websocket::parse(&self.buffer) {
                self.buffer.advance(header.size);
                return self.skip(header.payload, |_| {}).await;
            }
            self.more().await?;
        }
    }
}

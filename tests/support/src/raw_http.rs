//! HTTP/1.1 as bytes, for the fake gateway and for raw clients. Nothing is normalised on the way.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The time limit of a read. It is longer than any read in a test takes, so that a hang fails with
/// a message.
const PATIENCE: Duration = Duration::from_secs(30);

/// A byte stream and the bytes that were read from it but are not used yet.
pub struct RawHttp<S> {
    pub stream: S,
    buffered: Vec<u8>,
}

/// A request or a response as it was received.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The start line and the fields, blank line included.
    pub head: String,
    pub body: Vec<u8>,
    /// Whether the sender closed the connection before the body was complete.
    pub truncated: bool,
    /// The trailer section of a chunked body, without its blank line.
    pub trailers: String,
}

impl Message {
    /// The first line.
    pub fn start_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.start_line().split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// Returns every value of a field, in order.
    pub fn field_values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// Returns the only value of a field; `None` if the field is absent.
    pub fn field(&self, name: &str) -> Option<&str> {
        let values = self.field_values(name);
        assert!(values.len() <= 1, "{name} occurs more than once in\n{}", self.head);
        values.first().copied()
    }

    /// The names of all fields, in lower case.
    pub fn field_names(&self) -> Vec<String> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.to_ascii_lowercase())
            .collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawHttp<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffered: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// Reads more bytes; returns `false` if the stream has ended or failed.
    async fn read_more(&mut self) -> bool {
        let mut block = [0; 16 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut block)).await;
        match read.unwrap_or_else(|_| {
            panic!("nothing arrived for {PATIENCE:?} after {:?}", String::from_utf8_lossy(&self.buffered))
        }) {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.buffered.extend_from_slice(&block[..read]);
                true
            }
        }
    }

    /// Reads up to `end`, `end` included; `None` if the stream ends before.
    async fn read_until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffered[searched..].windows(end.len()).position(|window| window == end) {
                return Some(self.buffered.drain(..searched + at + end.len()).collect());
            }
            searched = self.buffered.len().saturating_sub(end.len() - 1);
            if !self.read_more().await {
                return None;
            }
        }
    }

    /// Reads the next `count` bytes.
    pub async fn read_exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffered.len() < count {
            if !self.read_more().await {
                return None;
            }
        }
        Some(self.buffered.drain(..count).collect())
    }

    /// Reads until the stream ends.
    pub async fn read_rest(&mut self) -> Vec<u8> {
        while self.read_more().await {}
        std::mem::take(&mut self.buffered)
    }

    /// Reads until the stream ends; returns whether it ends without an error (over TLS: with a
    /// `close_notify`).
    pub async fn ends_cleanly(&mut self) -> bool {
        let mut block = [0; 1024];
        loop {
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut block)).await;
            match read.expect("the stream ends") {
                Ok(0) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Reads and drops everything until the stream ends.
    pub async fn until_end(&mut self) {
        let mut block = [0; 1024];
        while matches!(self.stream.read(&mut block).await, Ok(1..)) {}
    }

    /// Returns the stream, and the bytes that were read from it but are not used yet.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.buffered)
    }

    /// Reads the next head; `None` if the stream ends before.
    pub async fn read_head(&mut self) -> Option<Message> {
        let head = self.read_until(b"\r\n\r\n").await?;
        Some(Message { head: String::from_utf8_lossy(&head).into_owned(), ..Message::default() })
    }

    /// Reads a chunk of a chunked body; an empty one is the last.
    pub async fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.read_until(b"\r\n").await?;
        let size = std::str::from_utf8(&size).ok().and_then(|size| usize::from_str_radix(size.trim_end(), 16).ok());
        let size = size.expect("a chunk size and nothing else");
        if size == 0 {
            return Some(Vec::new());
        }
        let mut data = self.read_exactly(size + 2).await?;
        assert_eq!(data.split_off(size), b"\r\n", "a chunk ends with CRLF");
        Some(data)
    }

    /// Reads the trailer section after the last chunk.
    pub async fn read_trailers(&mut self) -> Option<String> {
        let mut trailers = String::new();
        loop {
            let line = String::from_utf8(self.read_until(b"\r\n").await?).unwrap();
            if line == "\r\n" {
                return Some(trailers);
            }
            trailers.push_str(&line);
        }
    }

    /// Reads the body that the head of `message` announces; returns `false` if the stream ended
    /// before the body did. If the head states no length, the body lasts until the end of the
    /// stream if `to_the_end`, and else is empty.
    pub async fn read_body(&mut self, message: &mut Message, to_the_end: bool) -> bool {
        if message.field("transfer-encoding").is_some() {
            assert_eq!(message.field("transfer-encoding"), Some("chunked"));
            assert_eq!(message.field("content-length"), None, "both framings in\n{}", message.head);
            loop {
                match self.read_chunk().await {
                    Some(data) if data.is_empty() => break,
                    Some(data) => message.body.extend(data),
                    None => return false,
                }
            }
            match self.read_trailers().await {
                Some(trailers) => message.trailers = trailers,
                None => return false,
            }
        } else if let Some(length) = message.field("content-length") {
            let length = length.parse().expect("a Content-Length is a number");
            match self.read_exactly(length).await {
                Some(body) => message.body = body,
                None => {
                    message.body = std::mem::take(&mut self.buffered);
                    return false;
                }
            }
        } else if to_the_end {
            message.body = self.read_rest().await;
        }
        true
    }

    /// Takes the bytes that were read from the stream and not used yet.
    pub fn take_buffered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffered)
    }

    /// Reads a whole response to a request other than HEAD; `None` if the stream ended before it
    /// was whole.
    pub async fn read_response(&mut self) -> Option<Message> {
        let mut response = self.read_head().await?;
        let bodiless = matches!(response.status(), 100..200 | 204 | 304);
        (bodiless || self.read_body(&mut response, true).await).then_some(response)
    }

    /// Sends a request and waits for the head of its response.
    pub async fn ask_head(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request).await.expect("a request can be sent");
        self.read_head().await.expect("the head of a response")
    }

    /// Sends a request and waits for its whole response.
    pub async fn send_request(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request).await.expect("a request can be sent");
        self.read_response().await.expect("a whole response")
    }
}

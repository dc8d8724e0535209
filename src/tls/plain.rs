//! A word to those who come with `http://` or `ws://`: a TLS alert would tell them nothing.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// nginx answers so too. The gateway is not asked, so there is nothing to keep the connection for.
const ANSWER: &str = "HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 46\r\n\
    Connection: close\r\n\
    \r\n\
    This port speaks TLS: use https:// or wss://.\n";
/// How long and how much of the client's request is read after that: a connection closed over unread bytes is reset, answer and all.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 64 * 1024);

/// Whether what comes first is a method: a TLS record begins with its type, which is no letter (RFC 8446, section 5.1).
pub(super) async fn is_http(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase()
}

/// Answers and closes. Whether the client takes it is its own affair.
pub(super) async fn refuse(mut stream: TcpStream) {
    let _ = stream.write_all(ANSWER.as_bytes()).await;
    let _ = stream.shutdown().await;
    let (time, bytes) = LINGER;
    let (mut rest, mut nowhere) = (stream.take(bytes), tokio::io::sink());
    let _ = tokio::time::timeout(time, tokio::io::copy(&mut rest, &mut nowhere)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let (head, body) = ANSWER.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}

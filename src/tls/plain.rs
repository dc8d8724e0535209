//! Answers clients that speak plain HTTP to a TLS port, since they would not understand a TLS alert.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The same answer as nginx gives. The connection is closed after it.
const ANSWER: &str = "HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 46\r\n\
    Connection: close\r\n\
    \r\n\
    This port speaks TLS: use https:// or wss://.\n";
/// The time for and the size of the request data that is read after the answer: closing a socket
/// with unread data resets the connection, and the client would lose the answer.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 64 * 1024);

/// Returns whether the first byte begins an HTTP method. A TLS record begins with its type, which
/// is no letter (RFC 8446, section 5.1).
pub(super) async fn is_http(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase()
}

/// Answers and closes the connection. Failures are ignored.
pub(super) async fn refuse(mut stream: TcpStream) {
    let _ = stream.write_all(ANSWER.as_bytes()).await;
    let _ = stream.shutdown().await;
    let (time, bytes) = LINGER;
    let (mut rest, mut sink) = (stream.take(bytes), tokio::io::sink());
    let _ = tokio::time::timeout(time, tokio::io::copy(&mut rest, &mut sink)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_content_length_is_right() {
        let (head, body) = ANSWER.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}

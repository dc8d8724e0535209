//! Answers clients that speak plain HTTP on a TLS port. They would not understand a TLS alert.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The response to plain HTTP, with the same status as nginx's.
const RESPONSE: &str = "HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 46\r\n\
    Connection: close\r\n\
    \r\n\
    This port speaks TLS: use https:// or wss://.\n";
/// The time for which request data is read after the response.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// The maximum size of the request data that is read after the response, in bytes.
const LINGER_BYTES: u64 = 64 * 1024;

/// Waits for the first byte, and returns whether it is that of an HTTP method, an upper-case
/// letter. A TLS record begins with its type, which is not a letter (RFC 8446, section 5.1). The
/// byte is not consumed. Returns `false` if the connection ends or fails.
pub(super) async fn is_plain_http(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase()
}

/// Sends [`RESPONSE`], discards what the client still sends for at most [`LINGER_TIME`], and closes
/// the connection. Failures are ignored.
pub(super) async fn respond_and_close(mut stream: TcpStream) {
    let _ = stream.write_all(RESPONSE.as_bytes()).await;
    let _ = stream.shutdown().await;
    // Closing a socket with unread data resets the connection, and the client would lose the
    // response.
    let (mut rest, mut sink) = (stream.take(LINGER_BYTES), tokio::io::sink());
    let _ = tokio::time::timeout(LINGER_TIME, tokio::io::copy(&mut rest, &mut sink)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_content_length_is_right() {
        let (head, body) = RESPONSE.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}

//! The HTTP/1.1 client for loopgate's own requests, one request per connection: to the container
//! engine, the Kubernetes API server, the OpenTelemetry collector, and the gateway when loopgate
//! probes it.
//!
//! Streams and bodies are boxed, so that the binary contains one instance of this client instead of
//! one per type. The requests of clients don't use it: the [proxy](crate::proxy) forwards them.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Fuse, FutureExt};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

type BoxError = Box<dyn Error + Send + Sync>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A future that drives a connection. It must be polled until it is terminated. Dropping it closes
/// the connection.
pub type ConnectionTask = Fuse<BoxFuture<'static, ()>>;

/// A response body that drives its connection while it is read. Dropping it closes the connection.
pub struct ResponseBody {
    body: Incoming,
    connection: ConnectionTask,
}

/// Sends `request`, whose target must be in origin form, on `stream`, and returns the response once
/// its head has arrived. Sets no header and no timeout: the caller adds `Host`.
///
/// # Errors
/// If the connection breaks or the response is not HTTP/1.1.
pub async fn send_request<S, B>(stream: S, request: Request<B>) -> hyper::Result<Response<ResponseBody>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    send_boxed(Box::new(stream), request.map(|body| body.map_err(Into::into).boxed_unsync())).await
}

/// Sends `request` without the generic types of [`send_request`], so that the code exists only
/// once.
async fn send_boxed(
    stream: Box<dyn Stream>,
    request: Request<UnsyncBoxBody<Bytes, BoxError>>,
) -> hyper::Result<Response<ResponseBody>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // An error of the connection is also the error of its only request, so it is not lost here.
    let mut connection = connection.map(drop).boxed().fuse();
    let mut sending = pin!(sender.send_request(request));
    let response = poll_fn(|context| {
        let _ = connection.poll_unpin(context);
        sending.as_mut().poll(context)
    });
    let (head, body) = response.await?.into_parts();
    Ok(Response::from_parts(head, ResponseBody { body, connection }))
}

impl ResponseBody {
    /// Returns the body and the connection separately, for a caller that drives the connection
    /// itself.
    pub fn into_body_and_connection(self) -> (Incoming, ConnectionTask) {
        (self.body, self.connection)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let _ = self.connection.poll_unpin(context);
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::FusedFuture;
    use http_body_util::Empty;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Sends a request to a server that answers with the bytes `sent`, and then closes its side if
    /// `closes`. Returns the result of the request, and the server's end of the connection.
    async fn answered(sent: &str, closes: bool) -> (hyper::Result<Response<ResponseBody>>, DuplexStream) {
        let (client, mut server) = duplex(1024);
        let serving = async {
            let mut head = [0; 256];
            let read = server.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /x HTTP/1.1\r\n") && head[..read].ends_with(b"\r\n\r\n"));
            server.write_all(sent.as_bytes()).await.unwrap();
            if closes {
                server.shutdown().await.unwrap();
            }
        };
        let request = Request::get("/x").header("host", "a").body(Empty::new()).unwrap();
        let (answer, ()) = tokio::join!(send_request(client, request), serving);
        (answer, server)
    }

    #[tokio::test]
    async fn a_body_is_streamed_and_its_end_closes_the_connection() {
        let (answer, mut server) = answered("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", false).await;
        let mut body = answer.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        server.write_all(b"cd").await.unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "cd");
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn dropping_the_body_closes_the_connection() {
        let (answer, mut server) = answered("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false).await;
        drop(answer.unwrap());
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_ends_with_the_head_is_terminated() {
        let (answer, _server) =
            answered("HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", true).await;
        assert!(answer.unwrap().into_body().into_body_and_connection().1.is_terminated());
    }

    #[tokio::test]
    async fn an_error_of_the_connection_is_the_error_of_the_request() {
        for sent in ["", "HTTP/1.1 200", "nonsense\r\n\r\n"] {
            assert!(answered(sent, true).await.0.is_err(), "{sent}");
        }
    }
}

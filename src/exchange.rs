//! One HTTP/1.1 request on a connection of its own, as loopgate itself asks: the engine, the API server, a collector, the gateway when it is
//! looked at.
//!
//! Streams and bodies are boxed, so that the program has one such client and not one for each of them. What clients ask of the gateway goes
//! by the [proxy](crate::proxy).

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

/// A connection, which has to be polled for anything to come or go on it, but not once it is terminated. Dropping it closes it.
pub type Connection = Fuse<BoxFuture<'static, ()>>;

/// The body of an answer, with the connection that it comes on. Dropping it closes the connection.
pub struct Answer {
    body: Incoming,
    connection: Connection,
}

/// Sends `request`, whose target is a path, on `stream`; resolves once there is the head of an answer.
///
/// # Errors
/// The connection breaks, or what comes is no HTTP/1.1.
pub async fn exchange<S, B>(stream: S, request: Request<B>) -> hyper::Result<Response<Answer>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    boxed(Box::new(stream), request.map(|body| body.map_err(Into::into).boxed_unsync())).await
}

async fn boxed(stream: Box<dyn Stream>, request: Request<UnsyncBoxBody<Bytes, BoxError>>) -> hyper::Result<Response<Answer>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // What it fails with, the one request on it fails with as well.
    let mut connection = connection.map(drop).boxed().fuse();
    let mut answering = pin!(sender.send_request(request));
    let response = poll_fn(|context| {
        let _ = connection.poll_unpin(context);
        answering.as_mut().poll(context)
    });
    let (head, body) = response.await?.into_parts();
    Ok(Response::from_parts(head, Answer { body, connection }))
}

impl Answer {
    /// The two by themselves, for whoever polls the connection elsewhere.
    pub fn split(self) -> (Incoming, Connection) {
        (self.body, self.connection)
    }
}

impl Body for Answer {
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

    /// What comes of a request that its server answers with `said`, and that server; it `ends` by saying no more.
    async fn answered(said: &str, ends: bool) -> (hyper::Result<Response<Answer>>, DuplexStream) {
        let (client, mut server) = duplex(1024);
        let answering = async {
            let mut head = [0; 256];
            let read = server.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /x HTTP/1.1\r\n") && head[..read].ends_with(b"\r\n\r\n"));
            server.write_all(said.as_bytes()).await.unwrap();
            if ends {
                server.shutdown().await.unwrap();
            }
        };
        let request = Request::get("/x").header("host", "a").body(Empty::new()).unwrap();
        let (answer, ()) = tokio::join!(exchange(client, request), answering);
        (answer, server)
    }

    #[tokio::test]
    async fn a_body_comes_as_it_is_sent_and_its_end_closes_the_connection() {
        let (answer, mut server) = answered("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", false).await;
        let mut body = answer.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        server.write_all(b"cd").await.unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "cd");
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn whoever_does_not_want_the_rest_closes_the_connection() {
        let (answer, mut server) = answered("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false).await;
        drop(answer.unwrap());
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_ends_with_the_head_needs_nobody() {
        let (answer, _server) = answered("HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", true).await;
        assert!(answer.unwrap().into_body().split().1.is_terminated());
    }

    #[tokio::test]
    async fn what_breaks_the_connection_is_the_requests_error() {
        for said in ["", "HTTP/1.1 200", "nonsense\r\n\r\n"] {
            assert!(answered(said, true).await.0.is_err(), "{said}");
        }
    }
}

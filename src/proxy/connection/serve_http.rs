//! HTTP/1.1 and HTTP/2 on a registered connection.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::establish::Registered;
use super::lifetime::run_until_end;
use crate::labels::Protocol;
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::downstream::h2_stream_stall::StreamExecutor;
use crate::proxy::downstream::io::Downstream;
use crate::proxy::request::answer::answer_request;

/// The largest flow-control window of an HTTP/2 stream, in bytes. The window of a connection comes
/// from the [`WindowBudget`](crate::proxy::downstream::window_budget::WindowBudget).
const MAX_STREAM_WINDOW: u32 = 1 << 20;
/// The most streams of an HTTP/2 connection that the client may reset before hyper accepted them,
/// and the most that `h2` resets for errors of the client. One more closes the connection.
const MAX_RESETS: usize = 20;
/// The most bytes buffered for an HTTP/1.1 client in each direction, or for an HTTP/2 stream. A
/// request head may need more.
const MAX_BUFFER: usize = 64 * 1024;
/// The time without a request or a part of a body after which hyper sends a PING over HTTP/2. It
/// finds a client that has vanished while its request waits for the gateway and nothing else is
/// sent. TCP keep-alive takes 90 seconds for this, and does not reach beyond a proxy that forwards
/// bytes.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// The time in which the client must answer a PING; otherwise hyper sends GOAWAY with NO_ERROR and
/// ends the connection. It suffices for an answer that waits behind other data on a slow link.
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The time that the close of a connection may take if the client does not read.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// hyper accepts HTTP/2 heads of up to this many times `limits.head_bytes`, so that loopgate can
/// refuse them with a reason. `h2` refuses larger heads with a response without a body, and closes
/// the connection for heads four times as large. Workaround: delete when h2 or hyper asks the
/// service for the response.
const OVERSIZE_FACTOR: usize = 2;

/// Serves the requests of a connection until it ends.
pub async fn serve(registered: Registered) {
    let (context, io) = registered.into_open_connection();
    match context.protocol {
        // Boxed, so that connections over HTTP/1.1, most of which are idle, don't hold the memory
        // of its larger state.
        Protocol::H2 => Box::pin(serve_h2(context, io)).await,
        Protocol::H1 => serve_h1(context, io).await,
    }
}

/// Serves HTTP/1.1 on `io` until the connection has ended.
async fn serve_h1(context: Arc<ConnectionContext>, io: Downstream) {
    let limits = &context.settings.limits;
    let connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // `lifetime` has timeouts of its own: hyper's does not distinguish an idle connection
            // from a slow head.
            .header_read_timeout(None)
            .max_headers(limits.head_fields)
            .max_header_size(limits.head_bytes)
            .max_buf_size(MAX_BUFFER.max(limits.head_bytes))
            // `pipeline_flush` stays off: with it hyper buffers a body without limit while the
            // body's source is fast enough, and holds back a 101 or a refusal while unread input is
            // left ([rust-rpxy#596](https://github.com/junkurihara/rust-rpxy/pull/596)).
            .serve_connection(
                TokioIo::new(io),
                service_fn(|request: Request<Incoming>| answer_request(
                    Arc::clone(&context),
                    request,
                    context.head_tracker.begin_request()
                ))
            )
            .with_upgrades()
    );
    run_until_end(&context, connection, |connection| connection.graceful_shutdown()).await;
    close_after_refused_upgrade(&context).await;
}

/// Closes a connection that hyper ended without closing it, because a request had asked for an
/// upgrade. Over TLS the client gets a `close_notify`.
async fn close_after_refused_upgrade(context: &ConnectionContext) {
    let upgrade = context.take_refused_upgrade();
    if let Some(Ok(upgraded)) = upgrade.and_then(FutureExt::now_or_never) {
        let _ = timeout(CLOSE_LIMIT, TokioIo::new(upgraded).shutdown()).await;
    }
}

/// Serves HTTP/2 on `io` until the connection has ended.
async fn serve_h2(context: Arc<ConnectionContext>, io: Downstream) {
    let limits = &context.settings.limits;
    // Held until the connection has ended.
    let window = context.shared.window_budget.take_lease();
    let connection = pin!(
        http2::Builder::new(StreamExecutor::new(&context.shared.shutdown, limits.stall_timeout, limits.gateway_stall))
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .initial_stream_window_size(window.window_size().min(MAX_STREAM_WINDOW))
            .initial_connection_window_size(window.window_size())
            .max_concurrent_streams(limits.h2_streams)
            .max_send_buf_size(MAX_BUFFER)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS)
            .max_header_list_size(u32::try_from(limits.head_bytes.saturating_mul(OVERSIZE_FACTOR)).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(H2_PING_INTERVAL))
            .keep_alive_timeout(H2_PING_TIMEOUT)
            .serve_connection(
                TokioIo::new(io),
                service_fn(|request: Request<Incoming>| {
                    let handle = context.head_tracker.begin_request();
                    let context = Arc::clone(&context);
                    Box::pin(async move { answer_request(context, request, handle).await })
                })
            )
    );
    run_until_end(&context, connection, |connection| connection.graceful_shutdown()).await;
}

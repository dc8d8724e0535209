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
use crate::proxy::request::answer::answer;

/// The largest flow-control window of an HTTP/2 stream, in bytes. That of a connection is a [`WindowBudget`]'s.
///
/// [`WindowBudget`]: crate::proxy::downstream::window_budget::WindowBudget
const STREAM_WINDOW: u32 = 1 << 20;
/// Streams of an HTTP/2 connection that may end in a reset by the client before they were accepted,
/// or by loopgate for the client's errors.
const RESETS: usize = 20;
/// Bytes buffered for an HTTP/1.1 client in each direction, or for an HTTP/2 stream; a request head may need more.
const BUFFER: usize = 64 * 1024;

/// How long the close of a connection may take whose client does not read.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How much larger than `limits.head_bytes` an HTTP/2 head may be that is refused with a reason. `h2` refuses larger
/// ones by itself, without a body, and closes the connection for those that are four times as large as these.
/// Workaround: delete when h2 or hyper asks the service for the response.
const OVERSIZE: usize = 2;

/// Serves the requests of a connection until it ends.
pub async fn serve(registered: Registered) {
    let (context, io) = registered.open();
    match context.protocol {
        Protocol::H2 => serve_h2(context, io).await,
        Protocol::H1 => serve_h1(context, io).await,
    }
}

async fn serve_h1(context: Arc<ConnectionContext>, io: Downstream) {
    let limits = &context.settings.limits;
    let connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // `lifetime` has its own: hyper's can't tell an idle connection from a slow head.
            .header_read_timeout(None)
            .max_headers(limits.head_fields)
            .max_header_size(limits.head_bytes)
            .max_buf_size(BUFFER.max(limits.head_bytes))
            // Never `pipeline_flush`: with it hyper buffers a body without bound for as long as its
            // source keeps up, and holds back a 101 or a refusal while there is input left
            // ([rust-rpxy#596](https://github.com/junkurihara/rust-rpxy/pull/596)).
            .serve_connection(
                TokioIo::new(io),
                service_fn(|request: Request<Incoming>| answer(
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

/// Ends a connection that hyper has ended and not closed, since a request on it asked for an upgrade: over TLS the
/// client gets a `close_notify`.
async fn close_after_refused_upgrade(context: &ConnectionContext) {
    let upgrade = context.take_refused_upgrade();
    if let Some(Ok(upgraded)) = upgrade.and_then(FutureExt::now_or_never) {
        let _ = timeout(CLOSE_LIMIT, TokioIo::new(upgraded).shutdown()).await;
    }
}

async fn serve_h2(context: Arc<ConnectionContext>, io: Downstream) {
    let limits = &context.settings.limits;
    // Returned when the connection has ended.
    let window = context.shared.windows.lease();
    let connection = pin!(
        http2::Builder::new(StreamExecutor::new(
            &context.shared.shutdown,
            limits.stall_timeout,
            context.gateway_stall_timeout()
        ))
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .initial_stream_window_size(window.bytes().min(STREAM_WINDOW))
        .initial_connection_window_size(window.bytes())
        .max_concurrent_streams(limits.h2_streams)
        .max_send_buf_size(BUFFER)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .max_header_list_size(u32::try_from(limits.head_bytes.saturating_mul(OVERSIZE)).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(
            TokioIo::new(io),
            service_fn(|request: Request<Incoming>| {
                let handle = context.head_tracker.begin_request();
                let context = Arc::clone(&context);
                Box::pin(async move { answer(context, request, handle).await })
            })
        )
    );
    run_until_end(&context, connection, |connection| connection.graceful_shutdown()).await;
}

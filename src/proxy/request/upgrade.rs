//! Sends upgrade requests to the gateway. If it agrees, joins the client's connection and the
//! gateway's in a tunnel.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;

use super::client_authorization::ClientAuthorization;
use super::connect_check::build_connect_check;
use super::record::RequestRecord;
use super::response::response_for_client;
use super::response_body::ResponseBody;
use crate::error_chain::error_chain;
use crate::lane::{GatewayHead, scrub_response};
use crate::metrics::traffic::GaugeGuard;
use crate::proxy::close_signal::CloseSignal;
use crate::proxy::connection_context::ConnectionContext;
use crate::proxy::downstream::io::Downstream;
use crate::proxy::error::Error;
use crate::proxy::request_end::RequestEnd;
use crate::proxy::tunnel::{self, TunnelError, TunnelOptions};
use crate::proxy::upstream::budget::{GatewayPermit, Purpose};
use crate::proxy::upstream::gateway_request::InterimSender;
use crate::proxy::upstream::h1::response_head::ResponseHead;
use crate::proxy::upstream::pool::PooledConnection;
use crate::proxy::upstream::request_body::RequestBody;

/// The parts of an upgrade request besides its head.
pub struct UpgradeParts {
    /// The upgrade of the client's connection or stream in hyper.
    pub client_side: OnUpgrade,
    /// Whether the client sent an extended CONNECT over HTTP/2.
    pub is_h2_connect: bool,
}

/// Sends the upgrade request `head`. If the gateway agrees, starts the tunnel; else passes its
/// response on.
///
/// # Errors
/// There is no valid response.
pub async fn upgrade_request(
    context: &Arc<ConnectionContext>,
    mut head: GatewayHead,
    mut authorization: Option<ClientAuthorization>,
    parts: UpgradeParts,
    record: &Arc<RequestRecord>,
) -> Result<Response<ResponseBody>, Error> {
    let UpgradeParts { client_side, is_h2_connect } = parts;
    let shared = &context.shared;
    let lane = head.lane();
    let counters = shared.traffic.lane(lane);
    let tunnel_gauge = GaugeGuard::new(&counters.tunnels);
    record.set_sent_counter(counters.sent_bytes.clone());
    let (first_message, connect_response) = build_connect_check(context, &head).unzip();
    if first_message.is_some() {
        head.remove_websocket_extensions();
    }
    let is_capped = head.scope_cap().is_some();
    let key = head.websocket_key().cloned();

    let (response, mut upstream) = send_upgrade(context, head, authorization.as_mut(), record).await?;
    if response.status != StatusCode::SWITCHING_PROTOCOLS {
        // To an extended CONNECT, every success means that the WebSocket is open (RFC 8441 section
        // 5).
        if is_h2_connect && response.status.is_success() {
            return Err(Error::BadUpgradeResponse);
        }
        // The gateway may read what follows on this connection as the refused protocol.
        upstream.set_single_use();
        return Ok(response_for_client(context, response, upstream, record, authorization));
    }
    let is_websocket = switches_to_websocket(&response);
    // Only the messages of a WebSocket can be checked.
    if is_h2_connect && !proves_handshake(&response, key.as_ref(), is_websocket) || is_capped && !is_websocket {
        return Err(Error::BadUpgradeResponse);
    }

    let newest = Arc::clone(shared);
    let options = TunnelOptions {
        is_websocket,
        is_h2: is_h2_connect,
        buffer_budget: Arc::clone(shared.tunnel_buffer_budgets.for_lane(lane)),
        close_signal: match authorization {
            Some(_) => context.close_signal.for_tunnel(),
            None => context.close_signal.clone(),
        },
        // The other half of the timeout is for the close handshake.
        quiet_limit: Arc::new(move || newest.settings.load().limits.drain_timeout / 2),
        first_message: first_message.filter(|_| is_websocket),
        connect_response: connect_response.filter(|_| is_websocket),
        received_bytes: counters.received_bytes.clone(),
        sent_bytes: counters.sent_bytes.clone(),
    };
    start_tunnel(context, record, authorization, tunnel_gauge, client_side, upstream, options);
    Ok(switching_response(response, is_h2_connect, record))
}

/// Waits for a permit, sends the upgrade request and waits for the head of the gateway's response.
async fn send_upgrade(
    context: &ConnectionContext,
    head: GatewayHead,
    mut authorization: Option<&mut ClientAuthorization>,
    record: &RequestRecord,
) -> Result<(ResponseHead, PooledConnection), Error> {
    let client = head.client();
    let permit_future =
        pin!(async { Ok(context.acquire_permit(client, Purpose::WebSocket, record.start_time()).await?) });
    let (permit, granted_at) = ClientAuthorization::unless_revoked(authorization.as_deref_mut(), permit_future).await?;
    let (body, interim_sender, limits) = (RequestBody::empty(), InterimSender::default(), &context.settings.limits);
    let sending = pin!(context.shared.upstream.send(head, body, interim_sender, permit, limits, granted_at));
    ClientAuthorization::unless_revoked(authorization, sending).await
}

/// Starts the task of the tunnel, and records that the request has become one. `tunnel_gauge`
/// counts the tunnel until it ends.
fn start_tunnel(
    context: &ConnectionContext,
    record: &RequestRecord,
    authorization: Option<ClientAuthorization>,
    tunnel_gauge: GaugeGuard,
    client_side: OnUpgrade,
    upstream: PooledConnection,
    options: TunnelOptions,
) {
    record.set_end_once(RequestEnd::Upgraded);
    context.set_refused_upgrade(None);
    // An HTTP/2 connection must wait for the tunnels on its streams. Over HTTP/1.1 the tunnel takes
    // the connection over.
    let stream = options.is_h2.then(|| context.activity.begin_tunnel(record.guard()));
    let (number, peer, lane) = (context.number, context.peer, record.lane().label());
    // Boxed, so that what only the start of the tunnel needs is freed before the tunnel runs.
    let opening = Box::pin(open_tunnel(client_side, upstream, options, authorization));
    context.shared.shutdown.spawn(async move {
        let _gauge = tunnel_gauge;
        let ended = async {
            let (tunnel, _permit) = opening.await?;
            tunnel.await
        };
        if let Err(error) = ended.await {
            debug!(connection = number, %peer, lane, error = error_chain(&error), "tunnel ended early");
            // The reset of a TCP connection is passed on as a reset of the stream with CANCEL (RFC
            // 8441 section 5).
            if let Some(stream) = stream
                && !matches!(error, TunnelError::Unauthorized)
            {
                stream.reset_stream();
            }
        }
    });
}

/// Returns the response for the client: the gateway's 101, or a 200 to an extended CONNECT.
fn switching_response(
    response: ResponseHead,
    is_h2_connect: bool,
    record: &Arc<RequestRecord>,
) -> Response<ResponseBody> {
    let mut parts = response.into_parts();
    if is_h2_connect {
        parts.status = StatusCode::OK;
        scrub_response(&mut parts.headers);
        parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
    }
    Response::from_parts(parts, ResponseBody::from_loopgate(Bytes::new(), Arc::clone(record)))
}

/// Returns whether `response` switches to a WebSocket.
fn switches_to_websocket(response: &ResponseHead) -> bool {
    response.headers.get(UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Returns whether `response` proves that the gateway understood the handshake with `key` (RFC 6455
/// section 4.2.2).
fn proves_handshake(response: &ResponseHead, key: Option<&HeaderValue>, is_websocket: bool) -> bool {
    let expected = key.map(|key| derive_accept_key(key.as_bytes()));
    let accept = response.headers.get(SEC_WEBSOCKET_ACCEPT).and_then(|accept| accept.to_str().ok());
    is_websocket && expected.as_deref() == accept
}

/// The future of a tunnel: completes when the tunnel has ended.
type Tunnel = BoxFuture<'static, Result<(), TunnelError>>;

/// Waits for the end of `tunnel`. Closes it if the client of the request loses its `authorization`.
async fn run_while_authorized(
    mut tunnel: Tunnel,
    mut authorization: ClientAuthorization,
    close_signal: CloseSignal,
) -> Result<(), TunnelError> {
    tokio::select! {
        biased;
        () = authorization.wait_until_revoked() => {
            close_signal.revoke();
            tunnel.await
        }
        ended = &mut tunnel => ended,
    }
}

/// Takes both connections back from hyper. Returns the tunnel between them, and the permit to hold
/// until it ends.
///
/// # Errors
/// The gateway's connection was not upgraded, or the client left before its own was.
async fn open_tunnel(
    client_side: OnUpgrade,
    upstream: PooledConnection,
    options: TunnelOptions,
    authorization: Option<ClientAuthorization>,
) -> Result<(Tunnel, Option<GatewayPermit>), TunnelError> {
    let (gateway, from_gateway, permit) =
        upstream.into_upgraded().ok_or_else(|| io::Error::other("the connection to the gateway was not upgraded"))?;
    let client = client_side.await.map_err(io::Error::other)?;
    let close_signal = options.close_signal.clone();
    let tunnel: Tunnel = match client.downcast::<TokioIo<Downstream>>() {
        Ok(parts) => {
            let mut client = parts.io.into_inner();
            client.stop_observing();
            Box::pin(tunnel::run(client, gateway, (parts.read_buf, from_gateway), options))
        }
        // The client's side is a stream of an HTTP/2 connection.
        Err(stream) => Box::pin(tunnel::run(TokioIo::new(stream), gateway, (Bytes::new(), from_gateway), options)),
    };
    let tunnel = match authorization {
        Some(authorization) => Box::pin(run_while_authorized(tunnel, authorization, close_signal)),
        None => tunnel,
    };
    Ok((tunnel, permit))
}

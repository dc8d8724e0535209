//! After a `101`: two byte streams joined on one task, with no buffer of their own while they are quiet.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::close_signal::{CloseReason, CloseSignal};
use super::read_after_reset::ReadableAfterWriteError;
use super::websocket_frames::{GOING_AWAY, WebSocketFrames};

/// How much is read at once; four TLS records, which rustls then writes with one call.
const BLOCK: usize = 64 * 1024;

/// How long a client has to hang up once its WebSocket, or whatever it had with a gateway that is gone, is over.
const LINGER: Duration = Duration::from_secs(3);

thread_local! {
    /// Lent to whichever tunnel is being polled on this thread, so that the thousands that are quiet hold none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BLOCK].into_boxed_slice());
}

/// What a tunnel is told about itself.
pub struct TunnelOptions {
    /// Whether it is a WebSocket, so that it can be told goodbye between two frames.
    pub websocket: bool,
    /// What may be called out to it.
    pub close_signal: CloseSignal,
    /// Bytes from the client.
    pub received: Counter,
    /// Bytes to the client.
    pub sent: Counter,
}

/// Joins `client` and `gateway` until both directions are closed, one fails, or the lane is revoked.
///
/// `early` are bytes that were read with the heads already: from the client, and from the gateway.
///
/// # Errors
/// Either side broke off.
pub async fn run<C, G>(mut client: C, gateway: G, early: (Bytes, Bytes), options: TunnelOptions) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    // What a client that is still sending has to say to a gateway that is gone must not keep the gateway's goodbye from it.
    let mut gateway = ReadableAfterWriteError::new(gateway);
    let mut up = Direction::new(early.0, options.received, None);
    let mut down = Direction::new(early.1, options.sent, options.websocket.then(WebSocketFrames::default));
    let (closing, revoked) = options.close_signal.futures();
    let (mut closing, mut revoked) = (pin!(closing), pin!(revoked));
    let mut linger: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        while let Poll::Ready(call) = options.close_signal.poll(cx, closing.as_mut(), revoked.as_mut(), down.draining) {
            if call == CloseReason::Revoked {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, "the lane was revoked")));
            }
            down.draining = true;
        }
        let up_done = up.pump(cx, &mut client, &mut gateway)?;
        let down_done = down.pump(cx, &mut gateway, &mut client)?;
        if up_done.is_ready() && down_done.is_ready() {
            return Poll::Ready(Ok(()));
        }
        // A WebSocket has no half-closes (RFC 6455 section 7.1.1): what is over for the gateway is over. Closing at once could take the
        // last frames from a client that is still sending, so it has a moment to hang up itself.
        if down_done.is_ready() && (options.websocket || gateway.state().has_write_failed()) {
            return linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER))).as_mut().poll(cx).map(Ok);
        }
        Poll::Pending
    })
    .await
}

/// One direction: what was read and could not be written yet, and how far its end has come.
struct Direction {
    pending: Bytes,
    unflushed: bool,
    stage: Stage,
    count: Counter,
    frames: Option<WebSocketFrames>,
    /// A close frame is due at the next boundary.
    draining: bool,
    /// The close frame was sent: what still comes is not passed on.
    left: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    Ending,
    Closed,
}

impl Direction {
    fn new(early: Bytes, count: Counter, frames: Option<WebSocketFrames>) -> Self {
        let mut direction =
            Self { pending: Bytes::new(), unflushed: false, stage: Stage::Open, count, frames, draining: false, left: false };
        direction.pending = early;
        if let Some(frames) = &mut direction.frames {
            frames.feed(&direction.pending);
        }
        direction.count.inc_by(direction.pending.len() as u64);
        direction
    }

    /// Moves what can be moved; ready when this direction is closed.
    fn pump(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<Poll<()>> {
        SCRATCH.with_borrow_mut(|scratch| self.pump_with(cx, from, to, scratch))
    }

    fn pump_with(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
    ) -> io::Result<Poll<()>> {
        loop {
            if self.poll_write_pending(cx, to)?.is_pending() {
                return Ok(Poll::Pending);
            }
            match self.stage {
                Stage::Closed => return Ok(Poll::Ready(())),
                Stage::Ending => {
                    if Pin::new(&mut *to).poll_shutdown(cx)?.is_pending() {
                        return Ok(Poll::Pending);
                    }
                    self.stage = Stage::Closed;
                    continue;
                }
                Stage::Open => {}
            }
            // Here as well as in the middle of what is read: it may be long until there is more of that.
            if self.draining && !self.left && self.frames.as_ref().is_some_and(WebSocketFrames::at_boundary) {
                self.left = true;
                self.pending = Bytes::from_static(&GOING_AWAY);
                continue;
            }
            // First, so that nothing is read for someone who has not taken what there was.
            if self.unflushed {
                if Pin::new(&mut *to).poll_flush(cx)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                self.unflushed = false;
            }
            let mut block = ReadBuf::new(scratch);
            if Pin::new(&mut *from).poll_read(cx, &mut block)?.is_pending() {
                return Ok(Poll::Pending);
            }
            let read = block.filled();
            if read.is_empty() {
                self.stage = Stage::Ending;
            } else {
                self.pass_on(cx, read, to)?;
            }
        }
    }

    fn poll_write_pending(&mut self, cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<Poll<()>> {
        while !self.pending.is_empty() {
            let Poll::Ready(written) = Pin::new(&mut *to).poll_write(cx, &self.pending)? else { return Ok(Poll::Pending) };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.pending.advance(written);
            self.unflushed = true;
        }
        // Given back at once: a quiet tunnel holds nothing.
        self.pending = Bytes::new();
        Ok(Poll::Ready(()))
    }

    /// Writes `read` on, and keeps what can't be written now.
    fn pass_on(&mut self, cx: &mut Context<'_>, read: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.left {
            return Ok(());
        }
        let boundary = self.frames.as_mut().and_then(|frames| frames.feed(read));
        let leave_at = boundary.filter(|_| self.draining);
        let mut rest = &read[..leave_at.unwrap_or(read.len())];
        self.count.inc_by(rest.len() as u64);
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    rest = &rest[written..];
                    self.unflushed = true;
                }
                Poll::Pending => break,
            }
        }
        if leave_at.is_some() {
            self.left = true;
            self.pending = [rest, &GOING_AWAY].concat().into();
        } else if !rest.is_empty() {
            self.pending = Bytes::copy_from_slice(rest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// The options of a WebSocket that hears of `end`.
    fn options(end: &CancellationToken) -> TunnelOptions {
        TunnelOptions { websocket: true, close_signal: CloseSignal::new(end), received: Counter::default(), sent: Counter::default() }
    }

    #[tokio::test]
    async fn the_goodbye_follows_what_was_waiting_though_the_gateway_is_quiet() {
        let end = CancellationToken::new();
        // The client has taken but a part of a frame when the end is called out.
        let ((mut client, near), (far, mut gateway)) = (duplex(16), duplex(1024));
        let frame = [&[0x82, 100][..], &[7; 100]].concat();
        gateway.write_all(&frame).await.unwrap();
        let reading = async {
            let mut got = [0; 10];
            client.read_exact(&mut got).await.unwrap();
            end.cancel();
            let mut rest = vec![0; frame.len() - got.len() + GOING_AWAY.len()];
            client.read_exact(&mut rest).await.unwrap();
            assert_eq!([&got[..], &rest].concat(), [&frame[..], &GOING_AWAY].concat());
        };
        tokio::select! {
            ended = run(near, far, (Bytes::new(), Bytes::new()), options(&end)) => panic!("{ended:?}"),
            heard = tokio::time::timeout(Duration::from_secs(5), reading) => heard.expect("the goodbye"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_still_sending_gets_all_that_the_gateway_said() {
        let ((mut client, near), (far, gateway)) = (duplex(64), duplex(100_000));
        let (read, mut write) = tokio::io::split(gateway);
        let said = [&[0x82, 126, 0x7f, 0xff][..], &[7; 0x7fff], &[0x88, 2, 3, 0xf0]].concat();
        write.write_all(&said).await.unwrap();
        // Closed, both ways: what the client writes from now on fails.
        drop((read, write));
        let chatting = async {
            let mut got = Vec::new();
            while got.len() < said.len() {
                client.write_all(&[0x81, 0x80, 0, 0, 0, 0]).await.unwrap();
                got.push(client.read_u8().await.unwrap());
            }
            assert!(got == said);
            // It has a moment to hang up, and no longer.
            std::future::pending::<()>().await
        };
        tokio::select! {
            ended = run(near, far, (Bytes::new(), Bytes::new()), options(&CancellationToken::new())) => ended.unwrap(),
            () = chatting => {}
        }
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}

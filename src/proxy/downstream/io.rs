//! A downstream connection's bytes, followed on their way to and from hyper.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::activity::Activity;
use super::h1_request_guard::H1RequestGuard;
use super::h2_flood_guard::{ENHANCE_YOUR_CALM, H2FloodGuard, PROTOCOL_ERROR, Violation};
use crate::labels::Protocol;
use crate::listener::Permit;
use crate::metrics::traffic::{Held, Traffic};
use crate::proxy::registry::RegistryGuard;
use crate::tls;
use crate::workers::WorkerSlot;

/// Writes of HTTP/2 up to this size may be PINGs and their answers only, which do not mean that a response is being taken.
const CONTROL_FRAMES: usize = 64;

/// The response to a request head that was begun and not finished in time.
const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// What a connection holds until its last byte, tunnels included.
pub struct Resources {
    _listener: (Permit, WorkerSlot),
    _registered: RegistryGuard,
    _open: Held,
}

impl Resources {
    pub fn new(listener: (Permit, WorkerSlot), registered: RegistryGuard, open: Held) -> Self {
        Self { _listener: listener, _registered: registered, _open: open }
    }
}

/// A downstream connection's bytes, with everything that is released when they end. A tunnel takes it over.
pub struct Downstream {
    tls: tls::Stream<TcpStream>,
    /// `None` in a tunnel.
    observer: Option<Observer>,
    /// Whether the last write was cut short, so that the next bytes belong to it.
    partly_written: bool,
    _resources: Resources,
}

/// Follows the bytes of HTTP.
struct Observer {
    activity: Arc<Activity>,
    guard: ProtocolGuard,
}

/// The guard of each protocol, which detects abuse in the bytes.
enum ProtocolGuard {
    Http1(H1RequestGuard),
    Http2 { guard: H2FloodGuard, floods: Counter },
}

impl Observer {
    /// Follows what was read; returns the last bytes to send, if the connection must be closed for it.
    fn read(&mut self, bytes: &mut [u8]) -> Option<&'static [u8]> {
        match &mut self.guard {
            ProtocolGuard::Http1(guard) => {
                guard.follow(bytes);
                self.activity.bytes_in(guard.in_head());
                None
            }
            ProtocolGuard::Http2 { guard, floods } => {
                let had_begun = guard.has_begun();
                let followed = guard.follow(bytes);
                if !had_begun && guard.has_begun() {
                    self.activity.preface_ended();
                }
                match followed {
                    Ok(()) => None,
                    Err(Violation::Flood) => {
                        floods.inc();
                        Some(&ENHANCE_YOUR_CALM)
                    }
                    Err(Violation::NoSettings) => Some(&PROTOCOL_ERROR),
                }
            }
        }
    }

    fn written(&mut self, count: usize) {
        match &mut self.guard {
            ProtocolGuard::Http1(_) => self.activity.bytes_out(),
            ProtocolGuard::Http2 { guard, .. } => {
                guard.written(count);
                if count > CONTROL_FRAMES {
                    self.activity.bytes_out();
                }
            }
        }
    }
}

impl Downstream {
    pub fn new(tls: tls::Stream<TcpStream>, protocol: Protocol, activity: Arc<Activity>, traffic: &Traffic, resources: Resources) -> Self {
        let guard = match protocol {
            Protocol::Http2 => ProtocolGuard::Http2 { guard: H2FloodGuard::new(), floods: traffic.floods.clone() },
            Protocol::Http1 => ProtocolGuard::Http1(H1RequestGuard::default()),
        };
        Self { tls, observer: Some(Observer { activity, guard }), partly_written: false, _resources: resources }
    }

    /// Stops following the bytes: what comes from now on is not HTTP/1.1.
    pub fn leave_http(&mut self) {
        self.observer = None;
    }

    fn note_written(&mut self, poll: &Poll<io::Result<usize>>, offered: usize) {
        let written = if let Poll::Ready(Ok(written)) = poll { *written } else { 0 };
        self.partly_written = written < offered;
        if let Some(observer) = &mut self.observer {
            observer.activity.written(written, !self.partly_written);
            if written > 0 {
                observer.written(written);
            }
        }
    }

    /// Ends the connection with `bytes`, unless they would be read as a part of what was written partly.
    fn write_final(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut tls = Pin::new(&mut self.tls);
        if !self.partly_written
            && let Poll::Ready(Ok(_)) = tls.as_mut().poll_write(cx, bytes)
        {
            let _ = tls.poll_shutdown(cx);
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl AsyncRead for Downstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.tls).poll_read(cx, buf);
        let Some(observer) = &mut this.observer else { return poll };
        if buf.filled().len() > before {
            if let Some(bytes) = observer.read(&mut buf.filled_mut()[before..]) {
                return this.write_final(bytes, cx);
            }
        } else if observer.activity.is_head_abandoned() {
            // An HTTP/2 client that never ended its preface has no use for a response.
            let response = if matches!(observer.guard, ProtocolGuard::Http1(_)) { HEAD_TIMEOUT } else { &[] };
            return this.write_final(response, cx);
        }
        poll
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.tls).poll_write(cx, buf);
        self.note_written(&poll, buf.len());
        poll
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.tls).poll_write_vectored(cx, bufs);
        self.note_written(&poll, bufs.iter().map(|buf| buf.len()).sum());
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.tls).poll_flush(cx);
        if let Some(observer) = &self.observer {
            observer.activity.flushed(poll.is_ready());
        }
        poll
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

//! The byte stream of a downstream connection: over TLS, or plain TCP.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls;

/// A downstream connection on which HTTP begins.
pub enum Transport {
    /// A TLS stream after its handshake.
    Tls(tls::Stream<TcpStream>),
    /// A TCP stream of a trusted proxy that speaks plain HTTP (`listen.plain`).
    Plain(TcpStream),
}

/// Evaluates an expression for the stream of either variant.
macro_rules! either {
    ($transport:expr, $stream:ident => $result:expr) => {
        match $transport {
            Transport::Tls($stream) => $result,
            Transport::Plain($stream) => $result,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper tries to read in each poll. Asking the socket first costs a third of a read through
        // rustls.
        if let Self::Tls(stream) = this
            && let (socket, session) = stream.get_ref()
            && session.wants_read()
            && socket.is_read_pending(cx)
        {
            return Poll::Pending;
        }
        either!(this, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        either!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

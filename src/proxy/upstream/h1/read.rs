//! Reads from the stream without a buffer that outlives the read.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::proxy::read_offset::READ_OFFSET;

/// The size of the buffer that all connections of a thread share.
pub const SHARED_SIZE: usize = 16 * 1024;
/// A block of which less than one in this many bytes was filled is replaced by a copy of its bytes,
/// which takes less memory.
const FILLED_ONE_IN: usize = 2;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SHARED_SIZE].into());
}

/// Reads once into the buffer that all connections of the thread share; returns what `take` returns
/// for the bytes. They are empty at the end of `stream`.
///
/// # Errors
/// Those of the stream.
pub fn poll_read_shared<S, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>>
where
    S: AsyncRead + Unpin,
{
    SHARED.with_borrow_mut(|shared| {
        let mut buf = ReadBuf::new(shared);
        ready!(Pin::new(stream).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(take(buf.filled())))
    })
}

/// Reads once into a new block of `size` bytes, of which the first [`READ_OFFSET`] stay free;
/// returns the bytes, without a copy if they fill at least half of the block. They are empty at the
/// end of `stream`.
///
/// # Errors
/// Those of the stream.
pub fn poll_read_block<S>(stream: &mut S, cx: &mut Context<'_>, size: usize) -> Poll<io::Result<Bytes>>
where
    S: AsyncRead + Unpin,
{
    let mut block = BytesMut::with_capacity(size);
    block.resize(READ_OFFSET, 0);
    block.advance(READ_OFFSET);
    let count = ready!(poll_read_buf(Pin::new(stream), cx, &mut block))?;
    let is_well_filled = count >= size / FILLED_ONE_IN;
    Poll::Ready(Ok(if is_well_filled { block.freeze() } else { Bytes::copy_from_slice(&block) }))
}

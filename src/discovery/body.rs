//! Reads response bodies whole or line by line, with a size limit.

use bytes::Bytes;
use http_body_util::BodyExt;

use crate::http_client::ResponseBody;

/// Why a body can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke within the body.
    #[error(transparent)]
    Connection(#[from] hyper::Error),
    /// The body, or a line of it, is longer than the limit.
    #[error("the response exceeds the size limit")]
    TooLong,
    /// The body ended within a line.
    #[error("the response ended within a line")]
    Truncated,
}

/// Reads the whole `body`.
///
/// # Errors
/// The connection broke, or `body` is longer than `limit` bytes.
pub async fn read_all(mut body: ResponseBody, limit: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend_from_slice(frame?.data_ref().unwrap_or(&Bytes::new()));
        if bytes.len() > limit {
            return Err(Error::TooLong);
        }
    }
    Ok(bytes)
}

/// A body that is read line by line.
pub struct Lines {
    body: ResponseBody,
    /// The bytes that were read after the last line that was returned.
    buffered: Vec<u8>,
    /// The number of bytes without a line end at which reading fails.
    limit: usize,
}

impl Lines {
    /// Reads the lines of `body`. A line is too long if more than `limit` bytes have arrived
    /// without its end; one that arrives whole in one frame may be longer.
    pub fn new(body: ResponseBody, limit: usize) -> Self {
        Self { body, buffered: Vec::new(), limit }
    }

    /// Waits for the next line, with its line end; `None` at the end of the body. Cancel safe:
    /// dropping the future loses no data.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next_line(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut searched = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffered[searched..]) {
                let after_line = self.buffered.split_off(searched + at + 1);
                return Ok(Some(std::mem::replace(&mut self.buffered, after_line)));
            }
            searched = self.buffered.len();
            if searched > self.limit {
                return Err(Error::TooLong);
            }
            match self.body.frame().await {
                Some(frame) => self.buffered.extend_from_slice(frame?.data_ref().unwrap_or(&Bytes::new())),
                None if self.buffered.is_empty() => return Ok(None),
                None => return Err(Error::Truncated),
            }
        }
    }
}

//! The gateway's token, for agents that inherit it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use http::HeaderValue;
use zeroize::Zeroizing;

use crate::config::Config;

/// Why the token can't be used. The token itself is never part of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("reading the gateway's token from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no token in it.
    #[error("the gateway's token file {0} is empty")]
    Empty(PathBuf),
    /// It holds something that can't be sent in a header.
    #[error("the gateway's token file {0} holds characters that can't be sent in a header")]
    Unsendable(PathBuf),
}

/// The `Authorization` that attested agents inherit; `None` unless `agents.inherit_token`.
pub(super) fn inherited(config: &Config) -> Result<Option<HeaderValue>, Error> {
    let Some(path) = config.gateway.token_file.as_deref().filter(|_| config.agents.inherit_token) else { return Ok(None) };
    let token = read(path)?;
    let bearer = Zeroizing::new(format!("Bearer {}", *token));
    let mut value = HeaderValue::from_str(&bearer).map_err(|_| Error::Unsendable(path.to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// The token in `path`, without white space around it.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>, Error> {
    let text = fs::read_to_string(path).map(Zeroizing::new).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let token = text.trim();
    if token.is_empty() { Err(Error::Empty(path.to_owned())) } else { Ok(Zeroizing::new(token.to_owned())) }
}

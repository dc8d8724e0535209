//! The gateway's token, for agents that inherit it.

use std::io;
use std::path::PathBuf;

use http::HeaderValue;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::secret::Secret;

/// The token can't be used. No message contains it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read, or holds no token.
    #[error("can't read the gateway's token from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The token can't be sent in a header.
    #[error("the gateway's token in {0} holds characters that can't be sent in a header")]
    Unsendable(PathBuf),
}

/// Returns the `Authorization` value that attested agents inherit; `None` unless `agents.inherit_token` is set.
pub(super) fn inherited(config: &Config) -> Result<Option<HeaderValue>, Error> {
    let Some(path) = config.gateway.token_file.as_deref().filter(|_| config.agents.inherit_token) else { return Ok(None) };
    let token = Secret::read_file(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let bearer = Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(&bearer).map_err(|_| Error::Unsendable(path.to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

//! The gateway's token, for agents that inherit it.

use std::io;

use http::HeaderValue;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::secret::{GATEWAY_TOKEN_VARIABLE, Secret};

/// Why the token can't be used. No message contains the token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read, or its content is no token.
    #[error("can't read the gateway's token from {place}")]
    Read {
        /// The path of the file, or the name of the variable.
        place: String,
        /// Says what is wrong, without the token.
        source: io::Error,
    },
    /// The token is no valid header value. The field is the file or the variable.
    #[error("the gateway's token in {0} holds characters that can't be sent in a header")]
    Unsendable(String),
}

/// Returns the value of `Authorization` that is added to the requests of agents that show a
/// certificate. `None` if `agents.inherit_token` is off, or there is no token.
///
/// # Errors
/// If the token can't be read, or can't be sent in a header.
pub(super) fn read_inherited(config: &Config) -> Result<Option<HeaderValue>, Error> {
    if !config.agents.inherit_token {
        return Ok(None);
    }
    let file = config.gateway.token_file.as_deref();
    let place = || file.map_or_else(|| GATEWAY_TOKEN_VARIABLE.to_owned(), |file| file.display().to_string());
    let token = Secret::read_gateway_token(file).map_err(|source| Error::Read { place: place(), source })?;
    let Some(token) = token else { return Ok(None) };
    let bearer = Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(&bearer).map_err(|_| Error::Unsendable(place()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

//! The values that metrics, logs, spans and `status` use to name a lane or a protocol.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// The lane of a connection or a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneKind {
    /// The gateway sees a local client.
    Agent,
    /// The gateway sees a remote client.
    External,
}

impl LaneKind {
    /// Returns `agent` or `external`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::External => "external",
        }
    }
}

/// The version of HTTP that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, and HTTP/1.0.
    H1,
    /// HTTP/2.
    H2,
}

impl Protocol {
    /// Returns the protocol that ALPN negotiated: HTTP/2 for `h2`, else HTTP/1.1.
    pub fn of_alpn(alpn: Option<&[u8]>) -> Self {
        if alpn == Some(b"h2") { Self::H2 } else { Self::H1 }
    }

    /// Returns `http/1.1` or `h2`, the names that ALPN uses (RFC 7301 section 6).
    pub fn label(self) -> &'static str {
        match self {
            Self::H1 => "http/1.1",
            Self::H2 => "h2",
        }
    }
}

impl fmt::Display for LaneKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl EncodeLabelValue for LaneKind {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        self.label().encode(encoder)
    }
}

impl EncodeLabelValue for Protocol {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        self.label().encode(encoder)
    }
}

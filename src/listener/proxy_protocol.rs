//! The PROXY protocol, versions 1 and 2, by which a trusted proxy states its client's address
//! before the first byte of TLS.
//!
//! Specification: <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>. The header is read
//! from the stream, and no byte after it. The caller decides which peers may send a header.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ppp::{v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::addr::canonical;
use crate::lane::ProxyHeader;

#[cfg(test)]
mod tests;

/// The length of the shortest header, `PROXY UNKNOWN\r\n`.
const SHORTEST: usize = 15;
/// The length of the longest header of version 1, with its CRLF (section 2.1).
const V1_LONGEST: usize = 107;
/// The length of the fixed part of a header of version 2 (section 2.2).
const V2_FIXED: usize = 16;
/// The length of the longest header of version 2 that is accepted: up to 216 bytes of addresses,
/// and TLV fields.
const V2_LONGEST: usize = 4096;

/// The reason why there is no valid header.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer did not send a whole header within this time.
    #[error("no PROXY header within {0:?}")]
    Late(Duration),
    /// The connection failed or ended before a whole header.
    #[error("can't read the PROXY header")]
    Io(#[from] io::Error),
    /// The first bytes are not a header: the proxy is not configured to send one, or the peer is
    /// not a proxy.
    #[error("the connection does not begin with a PROXY header")]
    Absent,
    /// The header is longer than this number of bytes, which the protocol or loopgate allows.
    #[error("the PROXY header is longer than {0} bytes")]
    TooLong(usize),
    /// Why a header of version 1 can't be parsed.
    #[error("malformed PROXY header (version 1)")]
    V1(#[from] v1::BinaryParseError),
    /// Why a header of version 2 can't be parsed.
    #[error("malformed PROXY header (version 2)")]
    V2(#[from] v2::ParseError),
    /// The parser accepts the header, and the protocol does not.
    #[error("malformed PROXY header (version 1): it has a carriage return before its end, or a plus sign")]
    StrayCharacter,
    /// A well-formed header of version 2 for UDP, or for an unspecified protocol.
    #[error("the PROXY header (version 2) is not that of a TCP connection")]
    NotTcp,
}

/// Reads a header from `stream` and returns the client that it states.
///
/// # Errors
/// There is no valid header, or it does not arrive `within` the given time.
pub async fn read(stream: &mut TcpStream, within: Duration) -> Result<ProxyHeader, Error> {
    tokio::time::timeout(within, read_header(stream)).await.map_err(|_| Error::Late(within))?
}

/// Reads a header of version 1 or 2, and not a byte more.
async fn read_header(stream: &mut TcpStream) -> Result<ProxyHeader, Error> {
    let mut header = vec![0; SHORTEST];
    stream.read_exact(&mut header).await?;
    if header.starts_with(v2::PROTOCOL_PREFIX) {
        header.push(stream.read_u8().await?);
        let length = V2_FIXED + usize::from(u16::from_be_bytes([header[V2_FIXED - 2], header[V2_FIXED - 1]]));
        if length > V2_LONGEST {
            return Err(Error::TooLong(V2_LONGEST));
        }
        header.resize(length, 0);
        stream.read_exact(&mut header[V2_FIXED..]).await?;
        parse_v2(&header)
    } else if header.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        read_line(stream, &mut header).await?;
        parse_v1(&header)
    } else {
        Err(Error::Absent)
    }
}

/// Reads on until `header` ends with a line feed, and not a byte more.
///
/// # Errors
/// The line is longer than [`V1_LONGEST`], or the stream fails or ends before its end.
async fn read_line(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), Error> {
    while header.last() != Some(&b'\n') {
        let mut ahead = [0; V1_LONGEST];
        let left = V1_LONGEST - header.len();
        if left == 0 {
            return Err(Error::TooLong(V1_LONGEST));
        }
        let seen = stream.peek(&mut ahead[..left]).await?;
        let end = ahead[..seen].iter().position(|byte| *byte == b'\n').map_or(seen, |at| at + 1);
        let start = header.len();
        // At the end of the stream `end` is 0. Ask for one byte then, so that `read_exact` fails.
        header.resize(start + end.max(1), 0);
        stream.read_exact(&mut header[start..]).await?;
    }
    Ok(())
}

/// Returns the client that `header`, a whole one of version 1, states.
///
/// # Errors
/// It is malformed.
pub(crate) fn parse_v1(header: &[u8]) -> Result<ProxyHeader, Error> {
    let parsed = v1::Header::try_from(header)?;
    // The parser stops at the first CR, so it accepts a header with a second CR, which is not
    // valid.
    if parsed.header.len() != header.len() {
        return Err(Error::StrayCharacter);
    }
    match parsed.addresses {
        v1::Addresses::Unknown => Ok(ProxyHeader::Unknown),
        // Rust parses `+80` as a number; the protocol does not allow it.
        _ if parsed.header.contains('+') => Err(Error::StrayCharacter),
        v1::Addresses::Tcp4(ip) => Ok(stated_client(ip.source_address)),
        v1::Addresses::Tcp6(ip) => Ok(stated_client(ip.source_address)),
    }
}

/// Returns the client that `header`, a whole one of version 2, states.
///
/// # Errors
/// It is malformed, or states another protocol than TCP.
pub(crate) fn parse_v2(header: &[u8]) -> Result<ProxyHeader, Error> {
    let parsed = v2::Header::try_from(header)?;
    match (parsed.command, parsed.addresses, parsed.protocol) {
        (v2::Command::Local, _, _) => Ok(ProxyHeader::Local),
        (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_), _) => Ok(ProxyHeader::Unknown),
        (_, v2::Addresses::IPv4(ip), v2::Protocol::Stream) => Ok(stated_client(ip.source_address)),
        (_, v2::Addresses::IPv6(ip), v2::Protocol::Stream) => Ok(stated_client(ip.source_address)),
        (_, _, v2::Protocol::Datagram | v2::Protocol::Unspecified) => Err(Error::NotTcp),
    }
}

fn stated_client(ip: impl Into<IpAddr>) -> ProxyHeader {
    ProxyHeader::Client(canonical(ip.into()))
}

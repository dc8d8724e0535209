//! The PROXY protocol, versions 1 and 2: how a trusted proxy states a client's address before the first byte of TLS.
//!
//! Specification: <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>. Exactly the header is taken from the stream, not a
//! byte more. Whether the peer may state anything at all is the caller's judgement.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ppp::{v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::addr::canonical;
use crate::lane::Stated;

/// The shortest header there is: `PROXY UNKNOWN\r\n`.
const SHORTEST: usize = 15;
/// The longest header of version 1, its CRLF included (section 2.1).
const V1_LONGEST: usize = 107;
/// The fixed part of a header of version 2 (section 2.2).
const V2_FIXED: usize = 16;
/// The longest header of version 2 that is taken: 216 bytes of addresses, and ample room for what a proxy tells of its TLS.
const V2_LONGEST: usize = 4096;

/// Why there is no header to believe.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer did not send a whole header in time.
    #[error("no PROXY header within {0:?}")]
    Late(Duration),
    /// The connection failed or ended before a whole header.
    #[error("reading the PROXY header")]
    Io(#[from] io::Error),
    /// It does not begin as a header does: the proxy is not set up to send one, or the peer is no proxy.
    #[error("not a PROXY header")]
    Absent,
    /// The header has no end where it must have one.
    #[error("the PROXY header is longer than {0} bytes")]
    TooLong(usize),
    /// A malformed header of version 1.
    #[error("malformed PROXY header (version 1)")]
    V1(#[from] v1::BinaryParseError),
    /// A malformed header of version 2.
    #[error("malformed PROXY header (version 2)")]
    V2(#[from] v2::ParseError),
    /// A well-formed header that states something a TCP client can't have.
    #[error("the PROXY header doesn't state the source of a TCP connection")]
    Nonsense,
}

/// Reads a header from `stream`, and returns what it states.
pub async fn read(stream: &mut TcpStream, within: Duration) -> Result<Stated, Error> {
    tokio::time::timeout(within, read_header(stream)).await.map_err(|_| Error::Late(within))?
}

async fn read_header(stream: &mut TcpStream) -> Result<Stated, Error> {
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

/// Reads on until `header` ends with a line feed.
async fn read_line(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), Error> {
    while header.last() != Some(&b'\n') {
        let mut ahead = [0; V1_LONGEST];
        let room = V1_LONGEST - header.len();
        if room == 0 {
            return Err(Error::TooLong(V1_LONGEST));
        }
        let seen = stream.peek(&mut ahead[..room]).await?;
        let end = ahead[..seen].iter().position(|byte| *byte == b'\n').map_or(seen, |at| at + 1);
        let start = header.len();
        // At the end of the stream this is one byte, which read_exact then misses.
        header.resize(start + end.max(1), 0);
        stream.read_exact(&mut header[start..]).await?;
    }
    Ok(())
}

/// What a whole header of version 1 states.
pub(crate) fn parse_v1(header: &[u8]) -> Result<Stated, Error> {
    let parsed = v1::Header::try_from(header)?;
    // The crate stops at the first CR; a header with another one in it is none.
    if parsed.header.len() != header.len() {
        return Err(Error::Nonsense);
    }
    match parsed.addresses {
        v1::Addresses::Unknown => Ok(Stated::Unknown),
        // Rust takes `+80` for a number, the protocol does not.
        _ if parsed.header.contains('+') => Err(Error::Nonsense),
        v1::Addresses::Tcp4(ip) => Ok(of(ip.source_address)),
        v1::Addresses::Tcp6(ip) => Ok(of(ip.source_address)),
    }
}

/// What a whole header of version 2 states.
pub(crate) fn parse_v2(header: &[u8]) -> Result<Stated, Error> {
    let parsed = v2::Header::try_from(header)?;
    match (parsed.command, parsed.addresses, parsed.protocol) {
        (v2::Command::Local, _, _) => Ok(Stated::Own),
        (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_), _) => Ok(Stated::Unknown),
        (_, v2::Addresses::IPv4(ip), v2::Protocol::Stream) => Ok(of(ip.source_address)),
        (_, v2::Addresses::IPv6(ip), v2::Protocol::Stream) => Ok(of(ip.source_address)),
        (_, _, v2::Protocol::Datagram | v2::Protocol::Unspecified) => Err(Error::Nonsense),
    }
}

fn of(ip: impl Into<IpAddr>) -> Stated {
    Stated::Client(canonical(ip.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A header of version 2: version and command, family and protocol, what follows.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend(rest);
        header
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 172, 18, 0, 5, 0x13, 0x88, 0x49, 0x65];

    fn v6() -> Vec<u8> {
        let mut rest = Vec::from("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        rest.extend([0; 16]);
        rest.extend([0x13, 0x88, 0x49, 0x65]);
        rest
    }

    /// Sends `bytes` and the end of the stream, and returns what was read, and what was left.
    async fn through_a_socket(bytes: &[u8]) -> (Result<Stated, Error>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let stated = read(&mut server, SOON).await;
        let mut left = Vec::new();
        server.read_to_end(&mut left).await.unwrap();
        (stated, left)
    }

    #[tokio::test]
    async fn what_headers_state_and_not_a_byte_more_is_read() {
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), V1_LONGEST);
        let mut with_tlv = V4.to_vec();
        with_tlv.extend([0x04, 0, 4, 1, 2, 3, 4]);
        let table: Vec<(Vec<u8>, Stated)> = vec![
            (b"PROXY TCP4 192.0.2.7 172.18.0.5 5000 18789\r\n".into(), of([192, 0, 2, 7])),
            (b"PROXY TCP6 2001:db8::7 fd00::5 5000 18789\r\n".into(), of([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7])),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:172.18.0.5 5000 18789\r\n".into(), of([192, 0, 2, 7])),
            (b"PROXY UNKNOWN\r\n".into(), Stated::Unknown),
            (longest.into(), Stated::Unknown),
            (v2(0x21, 0x11, &V4), of([192, 0, 2, 7])),
            (v2(0x21, 0x11, &with_tlv), of([192, 0, 2, 7])),
            (v2(0x21, 0x21, &v6()), of([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7])),
            (v2(0x21, 0x00, &[]), Stated::Unknown),
            (v2(0x21, 0x31, &[0; 216]), Stated::Unknown),
            (v2(0x20, 0x00, &[]), Stated::Own),
            (v2(0x20, 0x11, &V4), Stated::Own),
            (v2(0x21, 0x00, &[0; V2_LONGEST - V2_FIXED]), Stated::Unknown),
        ];
        for (header, expected) in table {
            let mut bytes = header.clone();
            bytes.extend(b"\x16\x03\x01\n tail");
            let (stated, left) = through_a_socket(&bytes).await;
            let stated = stated.unwrap_or_else(|error| panic!("{error:?} of {:?}", String::from_utf8_lossy(&header)));
            assert_eq!(stated, expected, "{:?}", String::from_utf8_lossy(&header));
            assert_eq!(left, b"\x16\x03\x01\n tail", "{:?}", String::from_utf8_lossy(&header));
        }
    }

    #[tokio::test]
    async fn what_is_not_a_header_is_an_error() {
        let mut table: Vec<Vec<u8>> = [
            "PROXY TCP4 192.0.2.7 172.18.0.5 05000 18789\r\n",
            "PROXY TCP4 192.0.2.7 172.18.0.5 +5000 18789\r\n",
            "PROXY TCP4 192.0.2.7 172.18.0.5 65536 18789\r\n",
            "PROXY TCP4 192.0.2.007 172.18.0.5 5000 18789\r\n",
            "PROXY TCP4 192.0.2.7 172.18.0.5 5000 18789\n",
            "PROXY TCP4 192.0.2.7 172.18.0.5 5000 18789\r\r\n",
            "PROXY TCP4 192.0.2.7 172.18.0.5 5000\r\n",
            "PROXY TCP4  192.0.2.7 172.18.0.5 5000 18789\r\n",
            "PROXY TCP4 192.0.2.7 172.18.0.5 5000 18789 \r\n",
            "PROXY TCP4 2001:db8::7 fd00::5 5000 18789\r\n",
            "PROXY TCP6 fe80::1%eth0 fd00::5 5000 18789\r\n",
            "PROXY TCP5 192.0.2.7 172.18.0.5 5000 18789\r\n",
            "PROXY tcp4 192.0.2.7 172.18.0.5 5000 18789\r\n",
            "proxy TCP4 192.0.2.7 172.18.0.5 5000 18789\r\n",
            " PROXY TCP4 192.0.2.7 172.18.0.5 5000 18789\r\n",
            "PROXY UNKNOWN\rx\r\n",
            "PROXYUNKNOWN \r\n",
            "PROXY TCP4 192.0.2.7",
            "PROXY",
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\x7f\x03\x03 hello hello",
            "",
        ]
        .map(Vec::from)
        .into();
        table.push(format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_LONGEST)).into());
        table.push(b"PROXY TCP4 192.0.2.\xff 172.18.0.5 5000 18789\r\n".into());
        table.extend([
            v2(0x11, 0x11, &V4),
            v2(0x22, 0x11, &V4),
            v2(0x21, 0x41, &V4),
            v2(0x21, 0x13, &V4),
            v2(0x21, 0x12, &V4),
            v2(0x21, 0x10, &V4),
            v2(0x21, 0x11, &V4[..11]),
            v2(0x21, 0x21, &V4),
            v2(0x21, 0x31, &[0; 215]),
            v2(0x21, 0x11, &V4)[..20].into(),
            v2(0x21, 0x11, &V4)[..15].into(),
            v2(0x21, 0x00, &[0; V2_LONGEST - V2_FIXED + 1]),
        ]);
        for bytes in table {
            let (stated, _) = through_a_socket(&bytes).await;
            assert!(stated.is_err(), "{stated:?} of {:?}", String::from_utf8_lossy(&bytes));
        }
    }

    #[tokio::test]
    async fn a_header_that_comes_in_pieces_is_put_together() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let sender = async {
            for byte in b"PROXY TCP4 192.0.2.7 172.18.0.5 5000 18789\r\n" {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (stated, ()) = tokio::join!(read(&mut server, SOON), sender);
        assert_eq!(stated.unwrap(), of([192, 0, 2, 7]));
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let stated = read(&mut server, Duration::from_millis(20)).await;
        assert!(matches!(stated, Err(Error::Late(_))), "{stated:?}");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_v1(&bytes);
            let _ = parse_v2(&bytes);
        }

        #[test]
        fn nothing_that_begins_well_makes_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_v1(&[b"PROXY TCP4 ".as_slice(), &tail].concat());
            let _ = parse_v2(&[v2::PROTOCOL_PREFIX, tail.as_slice()].concat());
        }
    }
}

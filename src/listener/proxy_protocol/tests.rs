//! PROXY headers, valid and invalid.

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Returns a header of version 2. `command` is its 13th byte: 0x20 for LOCAL, 0x21 for PROXY.
/// `family` is its 14th byte: 0x11 for TCP over IPv4, 0x21 for TCP over IPv6, 0x31 for a unix
/// stream, 0x00 for unspecified. `rest` follows the length.
fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = v2::PROTOCOL_PREFIX.to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    header.extend(rest);
    header
}

/// The addresses of a connection from 192.0.2.7:5000 to 172.18.0.5:18789.
const V4: [u8; 12] = [192, 0, 2, 7, 172, 18, 0, 5, 0x13, 0x88, 0x49, 0x65];

fn v6_addresses() -> Vec<u8> {
    let mut rest = Vec::from("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    rest.extend([0; 16]);
    rest.extend([0x13, 0x88, 0x49, 0x65]);
    rest
}

/// Sends `bytes` and the end of the stream; returns the header that was read, and the bytes after
/// it.
async fn through_a_socket(bytes: &[u8]) -> (Result<ProxyHeader, Error>, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let stated = read(&mut server, TIMEOUT).await;
    let mut left = Vec::new();
    server.read_to_end(&mut left).await.unwrap();
    (stated, left)
}

#[tokio::test]
async fn exactly_the_header_is_read_and_its_client_returned() {
    let longest =
        "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(longest.len(), V1_LONGEST);
    let mut with_tlv = V4.to_vec();
    with_tlv.extend([0x04, 0, 4, 1, 2, 3, 4]);
    let table: Vec<(Vec<u8>, ProxyHeader)> = vec![
        (b"PROXY TCP4 192.0.2.7 172.18.0.5 5000 18789\r\n".into(), stated_client([192, 0, 2, 7])),
        (b"PROXY TCP6 2001:db8::7 fd00::5 5000 18789\r\n".into(), stated_client([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7])),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:172.18.0.5 5000 18789\r\n".into(), stated_client([192, 0, 2, 7])),
        (b"PROXY UNKNOWN\r\n".into(), ProxyHeader::Unknown),
        (longest.into(), ProxyHeader::Unknown),
        (v2_header(0x21, 0x11, &V4), stated_client([192, 0, 2, 7])),
        (v2_header(0x21, 0x11, &with_tlv), stated_client([192, 0, 2, 7])),
        (v2_header(0x21, 0x21, &v6_addresses()), stated_client([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7])),
        (v2_header(0x21, 0x00, &[]), ProxyHeader::Unknown),
        (v2_header(0x21, 0x31, &[0; 216]), ProxyHeader::Unknown),
        (v2_header(0x20, 0x00, &[]), ProxyHeader::Local),
        (v2_header(0x20, 0x11, &V4), ProxyHeader::Local),
        (v2_header(0x21, 0x00, &[0; V2_LONGEST - V2_FIXED]), ProxyHeader::Unknown),
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
async fn an_invalid_header_is_an_error() {
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
    // Headers with a wrong version, command, family or protocol, and then with a wrong length.
    table.extend([
        v2_header(0x11, 0x11, &V4),
        v2_header(0x22, 0x11, &V4),
        v2_header(0x21, 0x41, &V4),
        v2_header(0x21, 0x13, &V4),
        v2_header(0x21, 0x12, &V4),
        v2_header(0x21, 0x10, &V4),
        v2_header(0x21, 0x11, &V4[..11]),
        v2_header(0x21, 0x21, &V4),
        v2_header(0x21, 0x31, &[0; 215]),
        v2_header(0x21, 0x11, &V4)[..20].into(),
        v2_header(0x21, 0x11, &V4)[..15].into(),
        v2_header(0x21, 0x00, &[0; V2_LONGEST - V2_FIXED + 1]),
    ]);
    for bytes in table {
        let (stated, _) = through_a_socket(&bytes).await;
        assert!(stated.is_err(), "{stated:?} of {:?}", String::from_utf8_lossy(&bytes));
    }
}

#[tokio::test]
async fn a_header_may_arrive_in_pieces() {
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
    let (stated, ()) = tokio::join!(read(&mut server, TIMEOUT), sender);
    assert_eq!(stated.unwrap(), stated_client([192, 0, 2, 7]));
}

#[tokio::test]
async fn a_silent_peer_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let stated = read(&mut server, Duration::from_millis(20)).await;
    assert!(matches!(stated, Err(Error::Late(_))), "{stated:?}");
}

proptest! {
    #[test]
    fn no_input_causes_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_v1(&bytes);
        let _ = parse_v2(&bytes);
    }

    #[test]
    fn no_input_with_a_valid_beginning_causes_a_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_v1(&[b"PROXY TCP4 ".as_slice(), &tail].concat());
        let _ = parse_v2(&[v2::PROTOCOL_PREFIX, tail.as_slice()].concat());
    }
}

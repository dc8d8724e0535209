//! Tests of the parsers: tables of valid and invalid texts.

use std::fmt::Debug;

use super::*;

/// Asserts that `parse` accepts each text of `accepted`, with the debug output beside it, and none
/// of `refused`.
fn assert_parses<T: Debug>(parse: impl Fn(&str) -> Parsed<T>, accepted: &[(&str, &str)], refused: &[&str]) {
    for (text, parsed) in accepted {
        assert_eq!(parse(text).map(|value| format!("{value:?}")), Ok((*parsed).to_owned()), "{text:?}");
    }
    for text in refused {
        assert!(parse(text).is_err(), "{text:?} is accepted");
    }
}

#[test]
fn switches() {
    assert_parses(switch, &[("true", "true"), ("1", "true"), ("Off", "false"), ("no", "false")], &["", "maybe", "2"]);
}

#[test]
fn numbers_within_their_range() {
    assert_parses(number(1..=10), &[("1", "1"), ("10", "10")], &["0", "11", "-1", "1.5", "", "ten"]);
}

#[test]
fn paths_with_a_time_limit() {
    let accepted = [
        ("/v1/=15m", "PathTimeout { prefix: \"/v1/\", timeout: 900s }"),
        ("/a=b=7", "PathTimeout { prefix: \"/a=b\", timeout: 7s }"),
        ("/=1s", "PathTimeout { prefix: \"/\", timeout: 1s }"),
    ];
    assert_parses(
        path_timeout,
        &accepted,
        &["", "/v1/", "v1=5s", "/v1/=", "/v1/=0", "/v1/=ten", "/v1/../x=5s", "/v%31/=5s"],
    );
}

#[test]
fn durations() {
    assert_parses(
        duration,
        &[("10s", "10s"), ("500ms", "500ms"), ("2m", "120s"), ("7", "7s"), ("1h 30m", "5400s"), ("0", "0ns")],
        &["", "ten", "-1s", "10x", "1.5", "99999999999999999999", "400days"],
    );
    assert_parses(timeout, &[("1ms", "1ms")], &["0", "0s"]);
}

#[test]
fn lives_of_certificates() {
    assert_parses(
        certificate_life,
        &[("60", "60s"), ("1m", "60s"), ("1h", "3600s"), ("24h", "86400s")],
        &["0", "59s", "25h", "year"],
    );
    assert_parses(
        issued_certificate_life,
        &[("1m", "60s"), ("397d", "34300800s"), ("366days", "31622400s")],
        &["0", "59s", "397d 1s", "10years", "-1"],
    );
}

#[test]
fn addresses_are_folded() {
    assert_parses(
        socket_address,
        &[("127.0.0.1:80", "127.0.0.1:80"), ("[::1]:80", "[::1]:80"), ("[::ffff:10.0.0.1]:80", "10.0.0.1:80")],
        &["127.0.0.1", "localhost:80", ":80", "127.0.0.1:65536", "::1:80x"],
    );
    assert_parses(socket_address_or_off, &[("off", "None"), ("127.0.0.1:1", "Some(127.0.0.1:1)")], &["on", ""]);
    assert_eq!(
        socket_address_or_off("foo"),
        Err("is not an address and a port such as 127.0.0.1:9180, nor off".into())
    );
    assert_parses(ip, &[("::ffff:10.0.0.1", "10.0.0.1")], &["10.0.0", "10.0.0.1/32"]);
    assert_parses(loopback_ipv4, &[("127.0.0.2", "127.0.0.2")], &["10.0.0.1", "::1", "128.0.0.1"]);
}

#[test]
fn networks_lose_their_host_bits_and_become_ipv4_if_mapped() {
    assert_parses(
        network,
        &[
            ("172.18.0.0/16", "172.18.0.0/16"),
            ("172.18.0.3/16", "172.18.0.0/16"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("fd00::1", "fd00::1/128"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
            ("::ffff:10.1.0.0/104", "10.0.0.0/8"),
            ("::/0", "::/0"),
        ],
        &["10.0.0.0/33", "10.0.0", "fd00::/129", "", "any"],
    );
    assert_parses(
        loopback_ipv4_network,
        &[("127.77.0.0/16", "127.77.0.0/16")],
        &["126.0.0.0/7", "10.0.0.0/8", "::1", "0.0.0.0/0"],
    );
    assert_parses(agent_network, &[("0.0.0.0/1", "0.0.0.0/1")], &["0.0.0.0/0", "::/0", "::ffff:0.0.0.0/96"]);
}

#[test]
fn places_to_listen_on() {
    use ListenAddresses::{Address, Bridge, Interface, Network};
    let on = |addresses, port| Ok(ListenOn { addresses, port });
    for (text, parsed) in [
        ("bridge:18789", on(Bridge, 18789)),
        ("eth0:1", on(Interface("eth0".into()), 1)),
        ("br-1a2b.100:1", on(Interface("br-1a2b.100".into()), 1)),
        ("172.18.0.0/16:1", on(Network("172.18.0.0/16".parse().unwrap()), 1)),
        ("[fd00::/8]:1", on(Network("fd00::/8".parse().unwrap()), 1)),
        ("10.0.0.5:0", on(Address("10.0.0.5".parse().unwrap()), 0)),
        ("[::]:1", on(Address("::".parse().unwrap()), 1)),
    ] {
        assert_eq!(listen_on(text), parsed, "{text}");
    }
    assert_parses(
        listen_on,
        &[],
        &[
            "bridge",
            "bridge:",
            "bridge:x",
            "bridge:65536",
            ":1",
            "::1:1",
            "fd00::/8:1",
            "[eth0]:1",
            "[bridge]:1",
            "eth/0:1",
            "10.0.0.300:1",
            "an-interface-with-a-long-name:1",
            "a b:1",
            "10.0.0.0/33:1",
        ],
    );
}

#[test]
fn docker_engines() {
    assert_parses(
        engine,
        &[
            ("auto", "Auto"),
            ("off", "Off"),
            ("unix:///var/run/docker.sock", "Unix(\"/var/run/docker.sock\")"),
            ("tcp://filter:2375", "Tcp(\"filter:2375\")"),
            ("tcp://[fd00::1]:2375/", "Tcp(\"[fd00::1]:2375\")"),
        ],
        &[
            "",
            "on",
            "unix://",
            "unix:///",
            "unix://relative",
            "tcp://",
            "tcp://host",
            "tcp://host:0",
            "tcp://:1",
            "tcp://h/p:1",
            "http://h:1",
        ],
    );
}

#[test]
fn names() {
    assert_parses(
        container,
        &[("gateway-1", "\"gateway-1\""), ("/gateway-1", "\"gateway-1\"")],
        &["", "a/b", "-x", "a b"],
    );
    assert_parses(
        subject_name,
        &[
            ("Gateway.Example", "\"gateway.example\""),
            ("*.example.org", "\"*.example.org\""),
            ("10.0.0.1", "\"10.0.0.1\""),
        ],
        &["", "a b", "*", "*.*.org", "https://x", "-x.org", "x:1"],
    );
    assert_parses(
        uri,
        &[("spiffe://d/a", "\"spiffe://d/a\""), ("urn:a:b", "\"urn:a:b\"")],
        &["", "a", ":x", "x:", "x: y"],
    );
    assert_parses(scope, &[("operator.read", "\"operator.read\"")], &["", "a b", "a,b", "a\n"]);
    assert_parses(trust_domain, &[("loopgate.local", "\"loopgate.local\"")], &["", "Upper", "a/b", "spiffe://x"]);
    assert_parses(
        identity_header,
        &[("X-Forwarded-User", "\"x-forwarded-user\"")],
        &["", "a b", "Host", "x-forwarded-for", "X-Forwarded-Host", "connection", "forwarded"],
    );
    assert_parses(
        keep_header,
        &[("X-Auth-Token", "\"x-auth-token\""), ("client-cert", "\"client-cert\"")],
        &[
            "",
            "a b",
            "X-Forwarded-For",
            "x_forwarded_any",
            "x.real.ip",
            "Via",
            "Forwarded",
            "Tailscale-User-Login",
            "X-OpenClaw-Scopes",
            "x-openclaw!scopes",
            "x~forwarded-for",
        ],
    );
}

#[test]
fn log_filters() {
    assert_parses(
        log_filter,
        &[
            ("info", "\"info\""),
            ("loopgate::discovery=debug,warn", "\"loopgate::discovery=debug,warn\""),
            ("off", "\"off\""),
        ],
        &["", "inof", "loopgate=loud", "info,", "debug,wran"],
    );
}

#[test]
fn path_prefixes_and_methods() {
    assert_parses(
        path_prefix,
        &[("/", "\"/\""), ("/hooks/", "\"/hooks/\""), ("/hooks", "\"/hooks\""), ("/a/b.c", "\"/a/b.c\"")],
        &["", "hooks", "//", "/a//b", "/a/../b", "/.", "/a%2fb", "/a?b", "/a b", "/é"],
    );
    assert_parses(method, &[("POST", "POST")], &["", "post", "PO ST"]);
}

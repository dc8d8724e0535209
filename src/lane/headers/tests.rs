//! The header rules as tables: the request of a client, and the request that the gateway receives.

use std::net::Ipv4Addr;
use std::sync::Arc;

use http::{Method, Request};
use proptest::prelude::*;

use super::*;
use crate::addr::is_loopback_or_unspecified;
use crate::config::{Config, OwnAddresses};
use crate::discovery::{Agent, AgentKind, View};
use crate::lane::forwarding::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_FORWARDED_USER};
use crate::lane::{Evidence, ProxyHeader, decide_lane};

const GATEWAY: &str = "127.0.0.1:18789";

fn rules(change: impl FnOnce(&mut Config)) -> RequestRules {
    let mut config = Config::default();
    config.external.trusted_proxies = vec!["10.0.0.5/32".parse().unwrap()];
    config.external.identity_headers = vec![HeaderName::from_static("x-auth-user")];
    change(&mut config);
    RequestRules::new(&config)
}

fn gateway() -> Target {
    Target::for_gateway(GATEWAY.parse().unwrap())
}

fn lane_of(peer: &str, rules: &RequestRules) -> Lane {
    let mut view = View::default();
    let agent = Agent {
        id: "a".into(),
        name: "a".into(),
        project: None,
        service: None,
        kind: AgentKind::Address,
        scopes: None,
    };
    view.agents.insert("172.18.0.3".parse().unwrap(), Arc::new(agent));
    decide_lane(
        &Evidence { peer: peer.parse().unwrap(), proxy_header: ProxyHeader::Local, certificate: None },
        &view,
        rules.policy(),
        0,
    )
    .unwrap()
}

/// Returns the source address and the head that the gateway receives, as `name: value` lines sorted
/// by name.
fn gateway_receives(peer: &str, rules: &RequestRules, fields: &[(&str, &str)]) -> (String, Vec<String>) {
    let mut request = Request::builder().uri("/a?b=c").header("host", "gw.example:8443");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let head = GatewayHead::new(parts, &lane_of(peer, rules), rules, &gateway(), None, &BTreeSet::new()).unwrap();
    let source = head.route().source.to_string();
    let request = head.into_request(());
    assert_eq!(request.uri(), "/a?b=c");
    let mut lines: Vec<_> =
        request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort();
    (source, lines)
}

#[test]
fn forged_headers_are_removed_on_both_lanes() {
    let rules = rules(|_| {});
    let external = |client: &str| {
        let forwarded = ["x-forwarded-for: CLIENT", "x-forwarded-host: gw.example:8443", "x-forwarded-proto: https"];
        let mut lines = vec!["host: gw.example:8443".to_owned()];
        lines.extend(forwarded.iter().map(|line| line.replace("CLIENT", client)));
        lines
    };
    let agent = vec![format!("host: {GATEWAY}")];
    // Headers in which a client states its own identity are removed on both lanes.
    for forged in [
        &[][..],
        &[("x-forwarded-for", "127.0.0.1")],
        &[("x-forwarded-for", "127.0.0.1"), ("x-forwarded-for", "::1")],
        &[("forwarded", "for=127.0.0.1"), ("x-real-ip", "127.0.0.1"), ("via", "1.1 me")],
        &[("x_forwarded_for", "127.0.0.1"), ("x-forwarded_proto", "http"), ("x.real.ip", "1.1.1.1")],
        &[("tailscale-user-login", "root@x"), ("tailscale-user-name", "root"), ("x-openclaw-scopes", "operator.admin")],
        &[
            ("x-forwarded-user", "root"),
            ("remote-user", "root"),
            ("x-auth-request-email", "root@x"),
            ("x-forwarded-prefix", "/x"),
        ],
        &[("connection", "close, x-a"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "1"), ("x-b", "2")],
        &[("connection", "x-forwarded-for, x-forwarded-proto, x-forwarded-host")],
        &[("x-auth-user", "root"), ("x_auth_user", "root")],
        &[("keep-alive", "timeout=5"), ("te", "trailers"), ("proxy-authorization", "Basic eA==")],
        &[("upgrade", "h2c"), ("connection", "upgrade, http2-settings"), ("http2-settings", "AAMAAABkAAQAAP__")],
    ] {
        assert_eq!(
            gateway_receives("172.18.0.9", &rules, forged),
            ("127.0.0.2".into(), external("172.18.0.9")),
            "{forged:?}"
        );
        let (source, lines) = gateway_receives("172.18.0.3", &rules, forged);
        assert!(source.starts_with("127.77."), "{source}");
        assert_eq!(lines, agent, "{forged:?}");
    }
    // For a client on loopback a placeholder is stated, so that the gateway regards it as remote.
    assert_eq!(gateway_receives("127.0.0.1", &rules, &[]), ("127.0.0.2".into(), external("192.0.2.1")));
    assert_eq!(gateway_receives("::1", &rules, &[]), ("127.0.0.2".into(), external("192.0.2.1")));
    assert_eq!(gateway_receives("fd00::9", &rules, &[]), ("127.0.0.2".into(), external("fd00::9")));
}

#[test]
fn headers_without_a_special_meaning_pass() {
    let rules = rules(|_| {});
    let own = [
        ("authorization", "Bearer t"),
        ("cookie", "a=b"),
        ("referer", "https://x/"),
        ("x-request-id", "7"),
        ("accept", "*/*"),
    ];
    for peer in ["172.18.0.9", "172.18.0.3"] {
        let (_, lines) = gateway_receives(peer, &rules, &own);
        for (name, value) in own {
            assert!(lines.contains(&format!("{name}: {value}")), "{peer} {name}");
        }
    }
    // A client can't remove these headers by listing them in `Connection`.
    let (_, lines) = gateway_receives(
        "172.18.0.3",
        &rules,
        &[("connection", "authorization, cookie, host, origin"), ("authorization", "Bearer t")],
    );
    assert_eq!(lines, ["authorization: Bearer t", "host: 127.0.0.1:18789"]);
}

#[test]
fn a_header_that_carries_an_identity_passes_only_if_it_is_kept() {
    let fields = [("x-user", "root"), ("x_user", "root"), ("x-team-role", "owner"), ("x-openclaw-webhook-secret", "s")];
    let kept = rules(|config| config.external.keep_headers = vec![HeaderName::from_static("x-team-role")]);
    for peer in ["172.18.0.9", "172.18.0.3", "10.0.0.5"] {
        let sent = |rules: &RequestRules| -> Vec<String> {
            let lines = gateway_receives(peer, rules, &fields).1;
            lines.into_iter().filter(|line| !line.starts_with("host:") && !line.starts_with("x-forwarded-")).collect()
        };
        assert_eq!(sent(&rules(|_| {})), ["x-openclaw-webhook-secret: s"], "{peer}");
        assert_eq!(sent(&kept), ["x-openclaw-webhook-secret: s", "x-team-role: owner"], "{peer}");
    }
    // Only trusted proxies can set an identity header, even if `external.keep_headers` lists it
    // too.
    let both = rules(|config| config.external.keep_headers = vec![HeaderName::from_static("x-auth-user")]);
    let lines = gateway_receives("172.18.0.9", &both, &[("x-auth-user", "root")]).1;
    assert!(!lines.iter().any(|line| line.starts_with("x-auth-user")), "{lines:?}");
}

#[test]
fn a_page_on_an_agents_connection_is_external() {
    let rules = rules(|_| {});
    for fields in [
        &[("origin", "https://evil.example")][..],
        &[("origin", "null"), ("connection", "origin")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")],
        &[("sec-fetch-site", "none"), ("connection", "sec-fetch-site")],
        &[("sec-fetch-mode", "navigate")],
        &[("sec-fetch-mode", "no-cors")],
        &[("sec-fetch-mode", "cors"), ("sec-fetch-mode", "cors")],
        &[("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")],
        &[("sec-fetch-dest", "image")],
        &[("sec-fetch-user", "?1")],
        &[("sec-fetch-storage-access", "none")],
        &[("access-control-request-method", "POST")],
        &[("access-control-request-headers", "authorization")],
        &[("access-control-request-private-network", "true")],
        &[("referer", "https://evil.example/")],
        &[("referer", "https://gw.example/")],
        &[("referer", "https://gw.example:8443/"), ("referer", "https://evil.example/")],
        &[("referer", "about:client")],
    ] {
        let (source, lines) = gateway_receives("172.18.0.3", &rules, fields);
        assert_eq!(source, "127.0.0.2");
        assert!(lines.contains(&"x-forwarded-for: 172.18.0.3".into()), "{lines:?}");
    }
    // The built-in fetch of Node.js, which is not a browser, sends these headers too.
    for fields in [&[("sec-fetch-mode", "cors")][..], &[("referer", "https://GW.example:8443/chat?a=b")]] {
        assert!(gateway_receives("172.18.0.3", &rules, fields).0.starts_with("127.77."), "{fields:?}");
    }
}

#[test]
fn a_request_for_a_foreign_host_is_external() {
    let rules = rules(|_| {});
    let by_address = lane_of("172.18.0.3", &rules);
    let Lane::Agent(mut attested) = by_address.clone() else { panic!("not an agent") };
    attested.basis = crate::lane::AgentBasis::Certificate("spiffe://x".into());
    let attested = Lane::Agent(attested);
    let token = HeaderValue::from_static("Bearer inherited");
    let names = BTreeSet::from([SubjectName::Dns("gw.example".into())]);
    for (lane, host, expected) in [
        (&attested, "127.0.0.1:18789", LaneKind::Agent),
        (&attested, "gw.example:18789", LaneKind::Agent),
        (&attested, "evil.example:18789", LaneKind::External),
        // An agent by address connects over TLS, where the certificate check prevents other names.
        (&by_address, "evil.example:18789", LaneKind::Agent),
    ] {
        let (parts, ()) = Request::builder().uri("/").header("host", host).body(()).unwrap().into_parts();
        let head = GatewayHead::new(parts, lane, &rules, &gateway(), Some(&token), &names).unwrap();
        assert_eq!(head.lane(), expected, "{host}");
        let inherits = expected == LaneKind::Agent && lane == &attested;
        assert_eq!(head.into_request(()).headers().contains_key(AUTHORIZATION), inherits, "{host}");
    }
}

#[test]
fn a_page_on_an_agents_connection_has_to_pass_the_lists() {
    let deny: fn(&mut Config) = |config| config.external.deny = vec!["172.18.0.0/16".parse().unwrap()];
    let allow: fn(&mut Config) = |config| config.external.allow = vec!["198.51.100.0/24".parse().unwrap()];
    for change in [deny, allow] {
        let rules = rules(change);
        let ask = |page: bool| {
            let request = Request::builder().uri("/").header("host", "a");
            let request = if page { request.header("origin", "https://evil.example") } else { request };
            GatewayHead::new(
                request.body(()).unwrap().into_parts().0,
                &lane_of("172.18.0.3", &rules),
                &rules,
                &gateway(),
                None,
                &BTreeSet::new(),
            )
            .map(|head| head.lane())
        };
        assert_eq!(ask(true).unwrap_err(), RequestRefusal::ClientDenied);
        assert_eq!(ask(false).unwrap(), LaneKind::Agent);
    }
}

#[test]
fn only_a_trusted_proxy_may_state_the_client() {
    let rules = rules(|_| {});
    let fields = [
        ("x-forwarded-for", "127.0.0.1, 203.0.113.7"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "public.example"),
        ("x-auth-user", "ann"),
        ("x-forwarded-user", "root"),
    ];
    let (source, lines) = gateway_receives("10.0.0.5", &rules, &fields);
    assert_eq!(source, "127.0.0.2");
    let expected = [
        "host: gw.example:8443",
        "x-auth-user: ann",
        "x-forwarded-for: 203.0.113.7",
        "x-forwarded-host: public.example",
        "x-forwarded-proto: http",
    ];
    assert_eq!(lines, expected);
    // A loopback address is never stated, even if a trusted proxy names it. If the value is
    // malformed, the proxy itself is the client.
    for (value, client) in [
        ("127.0.0.1", "192.0.2.1"),
        ("::1", "192.0.2.1"),
        ("garbage", "10.0.0.5"),
        ("", "10.0.0.5"),
        ("10.0.0.5", "10.0.0.5"),
    ] {
        let (_, lines) = gateway_receives("10.0.0.5", &rules, &[("x-forwarded-for", value)]);
        assert!(lines.contains(&format!("x-forwarded-for: {client}")), "{value}: {lines:?}");
    }
    // Values that are lists, and headers that occur twice, are not passed on.
    let malformed = [
        ("x-forwarded-proto", "https, http"),
        ("x-forwarded-host", "a, b"),
        ("x-auth-user", "ann"),
        ("x-auth-user", "bob"),
    ];
    let (_, lines) = gateway_receives("10.0.0.5", &rules, &malformed);
    assert_eq!(
        lines[1..],
        ["x-forwarded-for: 10.0.0.5", "x-forwarded-host: gw.example:8443", "x-forwarded-proto: https"]
    );
}

#[test]
fn an_identity_header_never_replaces_a_forwarding_header() {
    let rules = rules(|config| config.external.identity_headers = vec![X_FORWARDED_FOR, X_FORWARDED_USER]);
    let (_, lines) =
        gateway_receives("10.0.0.5", &rules, &[("x-forwarded-for", "127.0.0.1"), ("x-forwarded-user", "ann")]);
    assert!(
        lines.contains(&"x-forwarded-for: 192.0.2.1".into()) && lines.contains(&"x-forwarded-user: ann".into()),
        "{lines:?}"
    );
}

#[test]
fn the_lists_hold_for_clients_that_a_trusted_proxy_names() {
    let rules = rules(|config| config.external.deny = vec!["203.0.113.0/24".parse().unwrap()]);
    let (parts, ()) = Request::builder()
        .uri("/")
        .header("host", "a")
        .header("x-forwarded-for", "203.0.113.7")
        .body(())
        .unwrap()
        .into_parts();
    let refused =
        GatewayHead::new(parts, &lane_of("10.0.0.5", &rules), &rules, &gateway(), None, &BTreeSet::new()).unwrap_err();
    assert_eq!(refused, RequestRefusal::ClientDenied);
}

#[test]
fn an_inherited_token_is_for_attested_agents_without_one() {
    let rules = rules(|config| {
        config.agents.scopes = vec!["operator.read".into()];
        config.listen.own_addresses = OwnAddresses::Agent;
    });
    let token = HeaderValue::from_static("Bearer inherited");
    let by_address = lane_of("172.18.0.3", &rules);
    let Lane::Agent(mut attested) = by_address.clone() else { panic!("not an agent") };
    attested.basis = crate::lane::AgentBasis::Certificate("spiffe://x".into());
    for (lane, own, expected) in [
        (by_address, None, None),
        (Lane::Agent(attested.clone()), None, Some("Bearer inherited")),
        (Lane::Agent(attested), Some("Bearer mine"), Some("Bearer mine")),
    ] {
        let mut request = Request::builder().uri("/").header("host", "localhost");
        if let Some(own) = own {
            request = request.header("authorization", own);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let request = GatewayHead::new(parts, &lane, &rules, &gateway(), Some(&token), &BTreeSet::new())
            .unwrap()
            .into_request(());
        assert_eq!(request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap()), expected);
        assert_eq!(request.headers()[X_OPENCLAW_SCOPES], "operator.read");
    }
}

#[test]
fn an_upgrade_keeps_what_it_needs() {
    let rules = rules(|_| {});
    let fields = [
        ("upgrade", "websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-key", "k"),
        ("sec-websocket-version", "13"),
    ];
    let (_, lines) = gateway_receives("172.18.0.3", &rules, &fields);
    assert_eq!(
        lines,
        [
            "connection: upgrade",
            "host: 127.0.0.1:18789",
            "sec-websocket-key: k",
            "sec-websocket-version: 13",
            "upgrade: websocket"
        ]
    );
}

#[test]
fn a_cap_closes_the_http_api_to_requests_and_upgrades() {
    let capped = |scope: &str| rules(|c| c.agents.scopes = vec![scope.to_owned()]);
    let (read, admin, free) = (capped("operator.read"), capped("operator.admin"), rules(|_| {}));
    let refusal = |path: &str, upgrade: bool, rules: &RequestRules| {
        let mut request = Request::builder().uri(path).header("host", "gw.example:8443");
        if upgrade {
            request = request.header("upgrade", "websocket").header("connection", "upgrade");
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        GatewayHead::new(parts, &lane_of("172.18.0.3", rules), rules, &gateway(), None, &BTreeSet::new()).err()
    };
    for upgrade in [false, true] {
        for path in [
            "/v1/models",
            "/tools/invoke",
            "/api/x",
            "/sessions/main/history",
            "/Sessions/main/kill",
            "/sessions/",
            "/%73essions/a",
        ] {
            assert_eq!(refusal(path, upgrade, &read), Some(RequestRefusal::ScopeCapped), "{path} {upgrade}");
            assert_eq!(refusal(path, upgrade, &admin), None, "{path} {upgrade}");
            assert_eq!(refusal(path, upgrade, &free), None, "{path} {upgrade}");
        }
        for path in ["/", "/sessions", "/sessionsx", "/sessions?session=main"] {
            assert_eq!(refusal(path, upgrade, &read), None, "{path} {upgrade}");
        }
    }
}

#[test]
fn cookies_of_http2_are_joined() {
    let rules = rules(|_| {});
    let request =
        Request::builder().version(Version::HTTP_2).uri("https://a/").header("cookie", "a=1").header("cookie", "b=2");
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let request = GatewayHead::new(parts, &lane_of("172.18.0.3", &rules), &rules, &gateway(), None, &BTreeSet::new())
        .unwrap()
        .into_request(());
    assert_eq!(request.headers().get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
}

#[test]
fn trailers_lose_the_fields_that_heads_lose() {
    let mut trailers = HeaderMap::new();
    for name in [
        "content_length",
        "cookie",
        "x-forwarded-for",
        "forwarded",
        "x-real-ip",
        "tailscale-user-login",
        "host",
        "authorization",
        "x-checksum",
    ] {
        trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
    }
    scrub_request_trailers(&mut trailers, &rules(|_| {}));
    assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-checksum"]);
}

proptest! {
    #[test]
    fn no_request_leaves_the_external_lane_without_forwarding_headers(
        fields in proptest::collection::vec(
            ("(x[-_.]forwarded[-_.](for|host|proto)|connection|forwarded|x-real-ip|[a-z-]{1,12})", "[ -~]{0,40}"),
            0..12,
        ),
        trusted: bool, is_h2: bool,
    ) {
        let rules = rules(|_| {});
        let mut request = Request::builder().method(Method::GET).uri("/").header("host", "a");
        if is_h2 {
            request = request.version(Version::HTTP_2);
        }
        for (name, value) in &fields {
            request = request.header(name, value);
        }
        let Ok(request) = request.body(()) else { return Ok(()) };
        let (parts, ()) = request.into_parts();
        let lane = lane_of(if trusted { "10.0.0.5" } else { "172.18.0.9" }, &rules);
        let names = BTreeSet::new();
        let Ok(head) = GatewayHead::new(parts, &lane, &rules, &gateway(), None, &names) else { return Ok(()) };
        prop_assert_eq!(head.route().source, Ipv4Addr::new(127, 0, 0, 2));
        let request = head.into_request(());
        for name in [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST] {
            prop_assert_eq!(request.headers().get_all(&name).iter().count(), 1);
        }
        let client: IpAddr = request.headers()[X_FORWARDED_FOR].to_str().unwrap().parse().unwrap();
        prop_assert!(!is_loopback_or_unspecified(client));
        let mut names = request.headers().keys().filter(|name| !name.as_str().starts_with("x-forwarded-"));
        prop_assert!(!names.any(super::super::reserved_headers::is_reserved));
    }
}

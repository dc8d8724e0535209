//! Rewriting the head of a request for the gateway, and of a response for the client.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::IpAddr;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use loopgate::config::Config;
use loopgate::lane::{
    AgentBasis, AgentLane, ExternalLane, ForwardedClient, GatewayHead, Lane, RequestRules, Scheme, Target,
    scrub_response,
};

const SMALL: &[(&str, &str)] = &[("host", "gateway:18789"), ("user-agent", "bench"), ("accept", "*/*")];
/// The header fields of a request of Chromium.
const BROWSER: &[(&str, &str)] = &[
    ("host", "gateway.example.com:18789"),
    ("connection", "keep-alive"),
    ("sec-ch-ua", "\"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\""),
    ("sec-ch-ua-mobile", "?0"),
    ("sec-ch-ua-platform", "\"Linux\""),
    ("upgrade-insecure-requests", "1"),
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    ),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
    ("sec-fetch-site", "same-origin"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-user", "?1"),
    ("sec-fetch-dest", "document"),
    ("referer", "https://gateway.example.com:18789/"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("accept-language", "en-US,en;q=0.9"),
    ("cookie", "session=0123456789abcdef; theme=dark"),
];

fn parts(fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::get("/api/sessions?limit=20");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn headers(criterion: &mut Criterion) {
    let config = Config::default();
    let (rules, target) = (RequestRules::new(&config), Target::for_gateway(config.gateway.address));
    let names = BTreeSet::new();
    let client: IpAddr = "172.18.0.9".parse().expect("an address");
    let unknown = config.external.unknown_client;
    let external = ExternalLane {
        client,
        forwarded_client: ForwardedClient::address_or_placeholder(client, unknown),
        is_trusted_proxy: false,
        scheme: Scheme::Https,
        user: None,
        scopes: None,
    };
    let agent = AgentLane {
        source: "127.77.1.2".parse().expect("an address"),
        basis: AgentBasis::Cidr,
        scopes: None,
        as_external: external.clone(),
    };
    for (lane_name, lane) in [("external", Lane::External(external)), ("agent", Lane::Agent(agent))] {
        for (size, fields) in [("3 fields", SMALL), ("16 fields", BROWSER)] {
            criterion.bench_function(&format!("request head, {lane_name}, {size}"), |bencher| {
                let request_parts = || parts(fields);
                bencher.iter_batched(
                    request_parts,
                    |parts| GatewayHead::new(black_box(parts), &lane, &rules, &target, None, &names),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    criterion.bench_function("response head", |bencher| {
        let response = Response::builder().header("content-type", "application/json").header("content-length", "18");
        let response =
            response.header("connection", "keep-alive").header("keep-alive", "timeout=5").body(()).expect("a response");
        let response_headers = || response.headers().clone();
        let scrubbed = |mut headers: HeaderMap| {
            scrub_response(&mut headers);
            headers
        };
        bencher.iter_batched(response_headers, scrubbed, BatchSize::SmallInput);
    });
}

criterion_group!(benches, headers);
criterion_main!(benches);

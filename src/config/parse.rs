//! Parses the text of option values. An error message is a phrase that follows the quoted value, as
//! in `"x" is not an address`.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustls_pki_types::DnsName;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::settings::{AgentService, Engine, ListenAddresses, ListenOn, PathTimeout, PortForward};
use crate::addr::canonical;

/// A parsed value, or why its text is invalid.
pub type Parsed<T> = Result<T, String>;

/// Parses `true` or `false`; also `1`, `0`, `yes`, `no`, `on` and `off`, which are common in
/// environment variables.
pub fn switch(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is not true or false".into()),
    }
}

/// Returns a parser that accepts one of `words`, and returns the value beside it.
pub fn choice<T: Copy>(words: &[(&str, T)]) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            format!("is not one of: {}", words.join(", "))
        })
    }
}

/// Returns a parser of whole numbers within `range`.
pub fn number<T: FromStr + PartialOrd + Display>(range: RangeInclusive<T>) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("is not a number from {} to {}", range.start(), range.end()))
    }
}

/// The longest duration of an option, a year. A longer one is a mistake, and could overflow when it
/// is added to a time.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Parses a duration of at most a year, such as `10s`, `500ms` or `1h 30m`, or a number of seconds.
pub fn duration(text: &str) -> Parsed<Duration> {
    match unlimited_duration(text)? {
        duration if duration <= MAX_DURATION => Ok(duration),
        _ => Err("is longer than a year".into()),
    }
}

/// Parses a duration like [`duration`], without the maximum.
fn unlimited_duration(text: &str) -> Parsed<Duration> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|_| "is not a duration such as 10s, 500ms or 2m".into()),
    }
}

/// Parses a duration that is not zero.
pub fn timeout(text: &str) -> Parsed<Duration> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than 0".into()),
        duration => Ok(duration),
    }
}

/// Parses the validity of an agent's certificate, from a minute to a day. A shorter one would fail
/// with small clock differences, and a longer one would leave a stolen certificate valid for too
/// long.
pub fn certificate_life(text: &str) -> Parsed<Duration> {
    const LIMITS: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(24 * 60 * 60);
    match duration(text)? {
        life if LIMITS.contains(&life) => Ok(life),
        _ => Err("is not between 1m and 24h".into()),
    }
}

/// Parses the validity of a certificate from `loopgate cert issue`. Some clients reject more than
/// 397 days.
pub fn issued_certificate_life(text: &str) -> Parsed<Duration> {
    const LIMITS: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(60)..=Duration::from_secs(397 * 24 * 60 * 60);
    match unlimited_duration(text)? {
        life if LIMITS.contains(&life) => Ok(life),
        _ => Err("is not between 1m and 397d".into()),
    }
}

/// Parses a socket address such as `127.0.0.1:80` or `[::1]:80`. The IP address becomes canonical.
pub fn socket_address(text: &str) -> Parsed<SocketAddr> {
    let address: SocketAddr = text.parse().map_err(|_| "is not an address and a port such as 127.0.0.1:18789")?;
    Ok(SocketAddr::new(canonical(address.ip()), address.port()))
}

/// Parses a socket address, or `off` as `None`.
pub fn socket_address_or_off(text: &str) -> Parsed<Option<SocketAddr>> {
    if text == "off" {
        return Ok(None);
    }
    socket_address(text).map(Some).map_err(|_| "is not an address and a port such as 127.0.0.1:9180, nor off".into())
}

/// Parses an IP address. It becomes canonical.
pub fn ip(text: &str) -> Parsed<IpAddr> {
    text.parse().map(canonical).map_err(|_| "is not an IP address".into())
}

/// Parses an IPv4 address in 127.0.0.0/8.
pub fn loopback_ipv4(text: &str) -> Parsed<Ipv4Addr> {
    match text.parse::<Ipv4Addr>() {
        Ok(ip) if ip.is_loopback() => Ok(ip),
        _ => Err("is not an address in 127.0.0.0/8".into()),
    }
}

/// Parses a network within 127.0.0.0/8.
pub fn loopback_ipv4_network(text: &str) -> Parsed<Ipv4Net> {
    let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    match network(text)? {
        IpNet::V4(net) if loopback.contains(&net) => Ok(net),
        _ => Err("is not a network in 127.0.0.0/8".into()),
    }
}

/// Parses a network such as `172.18.0.0/16`, or one address. Host bits are cleared, and a network
/// of IPv4-mapped IPv6 addresses becomes the IPv4 network.
pub fn network(text: &str) -> Parsed<IpNet> {
    let net: IpNet = match text.parse::<IpAddr>() {
        Ok(ip) => canonical(ip).into(),
        Err(_) => text.parse().map_err(|_| "is not a network such as 172.18.0.0/16")?,
    };
    Ok(match net.trunc() {
        IpNet::V6(net) => fold_mapped_network(net),
        net => net,
    })
}

/// Converts a network of IPv4-mapped addresses to the IPv4 network; leaves every other one
/// unchanged.
fn fold_mapped_network(net: Ipv6Net) -> IpNet {
    match (net.addr().to_ipv4_mapped(), net.prefix_len().checked_sub(96)) {
        (Some(ip), Some(prefix)) => Ipv4Net::new_assert(ip, prefix).trunc().into(),
        _ => net.into(),
    }
}

/// Parses a network of agents, which must not contain all addresses.
pub fn agent_network(text: &str) -> Parsed<IpNet> {
    match network(text)? {
        net if net.prefix_len() == 0 => Err("would make everyone an agent".into()),
        net => Ok(net),
    }
}

/// Parses `bridge:PORT`, `IFACE:PORT`, `CIDR:PORT` or `IP:PORT`. IPv6 needs brackets, as in
/// `[fd00::/8]:PORT`.
pub fn listen_on(text: &str) -> Parsed<ListenOn> {
    let (selector, port) = text.rsplit_once(':').ok_or("has no port (as in bridge:18443)")?;
    let port = port.parse().map_err(|_| "does not end in a port from 0 to 65535")?;
    let bracketed = selector.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let addresses = match bracketed.unwrap_or(selector) {
        "bridge" if bracketed.is_none() => ListenAddresses::Bridge,
        inner if bracketed.is_none() && inner.contains(':') => {
            return Err("has an IPv6 address without brackets (as in [::1]:18443)".into());
        }
        inner if inner.contains('/') => ListenAddresses::Network(network(inner)?),
        inner => match inner.parse() {
            Ok(ip) => ListenAddresses::Address(canonical(ip)),
            Err(_) if bracketed.is_none() && is_interface_name(inner) => ListenAddresses::Interface(inner.into()),
            Err(_) => return Err("is not bridge, an interface, a network or an address, and a port".into()),
        },
    };
    Ok(ListenOn { addresses, port })
}

/// Parses `PORT:TARGET`, the port to listen on and the gateway's port to forward to; or `TARGET`
/// for both.
pub fn port_forward(text: &str) -> Parsed<PortForward> {
    let (port, target) = text.split_once(':').unwrap_or((text, text));
    match (port.parse(), target.parse()) {
        (Ok(port), Ok(target @ 1..)) => Ok(PortForward { port, target }),
        _ => Err("is not a port, or two as in 28793:18793 (the one to listen on, and the gateway's)".into()),
    }
}

/// Returns whether the kernel accepts `name` as the name of an interface (`dev_valid_name`: at most
/// 15 bytes, without blank, slash or colon, and neither `.` nor `..`), and it is not a mistyped
/// address.
fn is_interface_name(name: &str) -> bool {
    let printable = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    (1..=15).contains(&name.len())
        && name.bytes().all(printable)
        && name != "."
        && name != ".."
        && !is_mistyped_address(name)
}

/// Returns whether `name` consists of digits and dots, such as `10.0.0.300`. That is a valid name
/// for an interface, but the user surely meant an address.
fn is_mistyped_address(name: &str) -> bool {
    name.contains('.') && name.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// Parses `auto`, `off`, `unix:///PATH` or `tcp://HOST:PORT`.
pub fn engine(text: &str) -> Parsed<Engine> {
    match text.split_once("://") {
        None if text == "auto" => Ok(Engine::Auto),
        None if text == "off" => Ok(Engine::Off),
        Some(("unix", path)) if path.starts_with('/') && path.len() > 1 => Ok(Engine::Unix(path.into())),
        Some(("tcp", endpoint)) => match host_and_port(endpoint.trim_end_matches('/')) {
            Ok(endpoint) => Ok(Engine::Tcp(endpoint)),
            Err(_) => Err("is not tcp://HOST:PORT".into()),
        },
        _ => Err("is not auto, off, unix:///PATH or tcp://HOST:PORT".into()),
    }
}

/// Parses `HOST:PORT`. The host is a name or an address, and is not resolved.
pub fn host_and_port(text: &str) -> Parsed<String> {
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    if host.is_empty() || host.contains(['/', '@']) || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err("is not HOST:PORT".into());
    }
    Ok(text.into())
}

/// Parses the audience of a token, which must be printable ASCII.
pub fn audience(text: &str) -> Parsed<String> {
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
        Err("is not an audience".into())
    } else {
        Ok(text.into())
    }
}

/// Parses a path: any text that is not empty.
pub fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() { Err("is not a path".into()) } else { Ok(text.into()) }
}

/// Parses a container's name or id. The leading slash that the Engine API puts before a name is
/// removed.
pub fn container(text: &str) -> Parsed<String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let text = text.strip_prefix('/').unwrap_or(text);
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(legal) {
        Ok(text.into())
    } else {
        Err("is not a container's name or id".into())
    }
}

/// Parses an IP address or a DNS name, which becomes lower case. A name may begin with `*.`.
pub fn subject_name(text: &str) -> Parsed<String> {
    if let Ok(ip) = text.parse() {
        return Ok(canonical(ip).to_string());
    }
    let name = text.to_ascii_lowercase();
    match DnsName::try_from(name.strip_prefix("*.").unwrap_or(&name)) {
        Ok(_) => Ok(name),
        Err(_) => Err("is not a DNS name or an IP address".into()),
    }
}

/// Parses a URI with a scheme, as a certificate has it in a SAN.
pub fn uri(text: &str) -> Parsed<String> {
    match text.split_once(':') {
        Some((scheme, rest))
            if !scheme.is_empty() && !rest.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Ok(text.into())
        }
        _ => Err("is not a URI".into()),
    }
}

/// Parses the URL of an OpenTelemetry collector: `http://HOST:PORT`, with an optional path.
pub fn otel_endpoint(text: &str) -> Parsed<http::Uri> {
    if !cfg!(feature = "otel") {
        return Err("can't be used: this loopgate is built without OpenTelemetry (the cargo feature otel)".into());
    }
    let url: http::Uri = text.parse().map_err(|_| "is not a URL")?;
    match url.scheme_str() {
        Some("http") if url.host().is_some() => Ok(url),
        Some("https") => Err("is not http: send spans to a local collector, which can forward them over TLS".into()),
        _ => Err("is not a URL such as http://127.0.0.1:4318".into()),
    }
}

/// Parses a scope such as `operator.read`. It has no comma, because scopes are sent as a
/// comma-separated header.
pub fn scope(text: &str) -> Parsed<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b',') {
        Ok(text.into())
    } else {
        Err("is not a scope".into())
    }
}

/// Parses a service whose containers are agents: `NAME` or `NAME=attested` if they enrol,
/// `NAME=address` if not.
pub fn agent_service(text: &str) -> Parsed<AgentService> {
    let (name, proof) = text.split_once('=').unwrap_or((text, "attested"));
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || !name.bytes().all(legal) {
        return Err("is not the name of a service".into());
    }
    let by_address = choice(&[("attested", false), ("address", true)])(proof)?;
    Ok(AgentService { name: name.into(), by_address })
}

/// Parses the name of a protocol for an `Upgrade` field, which becomes lower case. HTTP is refused,
/// because the requests in such a tunnel would bypass the rules of their lane.
pub fn upgrade(text: &str) -> Parsed<String> {
    let protocol = text.to_ascii_lowercase();
    if !(1..=64).contains(&protocol.len())
        || !protocol.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&b))
    {
        Err("is not the name of a protocol".into())
    } else if protocol.starts_with("h2") || protocol.starts_with("http") {
        Err("is HTTP, which must not be tunnelled past the lanes' rules".into())
    } else {
        Ok(protocol)
    }
}

/// Parses a SPIFFE trust domain (SPIFFE-ID section 2.1).
pub fn trust_domain(text: &str) -> Parsed<String> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
    if (1..=255).contains(&text.len()) && text.bytes().all(legal) {
        Ok(text.into())
    } else {
        Err("is not a trust domain (lower case letters, digits, dots, dashes and underscores)".into())
    }
}

/// Parses the name of an identity header. Headers that have another meaning are refused.
pub fn identity_header(text: &str) -> Parsed<HeaderName> {
    const RESERVED: [&str; 10] = [
        "connection",
        "content-length",
        "cookie",
        "forwarded",
        "host",
        "origin",
        "te",
        "transfer-encoding",
        "upgrade",
        "via",
    ];
    let name: HeaderName = text.parse().map_err(|_| "is not a header's name")?;
    let is_address =
        matches!(name.as_str(), "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" | "x-real-ip");
    if is_address || RESERVED.contains(&name.as_str()) { Err("can't be an identity header".into()) } else { Ok(name) }
}

/// Parses the name of a header that every client may send. Headers that loopgate sets itself, or by
/// which the gateway decides whether a client is local, are refused.
pub fn keep_header(text: &str) -> Parsed<HeaderName> {
    const RESERVED: [&str; 4] = ["forwarded", "via", "x-real-ip", "x-openclaw-scopes"];
    let name: HeaderName = text.parse().map_err(|_| "is not a header's name")?;
    // As the comparison with a request's headers does: only letters and digits are distinguished.
    let folded = name.as_str().replace(|char: char| !char.is_ascii_alphanumeric(), "-");
    let reserved =
        RESERVED.contains(&folded.as_str()) || folded.starts_with("x-forwarded") || folded.starts_with("tailscale-");
    if reserved {
        Err("can't be kept: the gateway decides by it whether a client is local, or what it may do".into())
    } else {
        Ok(name)
    }
}

/// Parses a filter for `tracing`: a level, or directives such as `loopgate::discovery=debug,warn`.
pub fn log_filter(text: &str) -> Parsed<String> {
    // `tracing` would interpret a misspelt level as the name of a module, and log only that module.
    let is_bare =
        |part: &str| part.is_empty() || !part.contains(['=', '[', ':']) && part.parse::<LevelFilter>().is_err();
    if text.is_empty() || text.split(',').any(is_bare) {
        return Err("is not a level (error, warn, info, debug, trace, off) or a filter".into());
    }
    match text.parse::<Targets>() {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(format!("is not a filter: {error}")),
    }
}

/// Parses the prefix of a path. It must be in the form that request paths are compared in: not
/// percent-encoded, without empty or dot segments.
pub fn path_prefix(text: &str) -> Parsed<String> {
    let inner = text.strip_prefix('/').ok_or("does not begin with /")?;
    if !text.bytes().all(|b| b.is_ascii_graphic() && !b"%?#\\;".contains(&b)) {
        return Err("is not a plain path (nothing encoded, no query)".into());
    }
    let mut segments = inner.strip_suffix('/').unwrap_or(inner).split('/');
    if !inner.is_empty() && segments.any(|segment| matches!(segment, "" | "." | "..")) {
        return Err("has an empty or a dot segment".into());
    }
    Ok(text.into())
}

/// Parses a path and a time limit, such as `/v1/=15m`.
pub fn path_timeout(text: &str) -> Parsed<PathTimeout> {
    let (prefix, time) = text.rsplit_once('=').ok_or("is not PATH=TIME (as in /v1/=15m)")?;
    Ok(PathTimeout { prefix: path_prefix(prefix)?, timeout: timeout(time)? })
}

/// Parses an HTTP method. One in lower case is refused: methods are case-sensitive, so it would
/// match no request.
pub fn method(text: &str) -> Parsed<http::Method> {
    match text.parse() {
        Ok(method) if !text.bytes().any(|b| b.is_ascii_lowercase()) => Ok(method),
        _ => Err("is not a method such as GET or POST".into()),
    }
}

#[cfg(test)]
mod tests;

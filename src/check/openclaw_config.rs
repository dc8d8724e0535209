//! Findings about the gateway's configuration file, `openclaw.json`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use http::HeaderName;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use super::gateway::{bind_loopback_remedy, no_tls_remedy, trust_exactly_remedy};
use crate::error_chain::error_chain;
use crate::lane::LanePolicy;
use crate::openclaw::files;

/// The values that the gateway's configuration must match.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The gateway's address in loopgate's configuration.
    pub gateway: SocketAddr,
    /// The source address of the external lane.
    pub external_source: IpAddr,
    /// The lane policy, which knows the headers that clients can send.
    pub policy: LanePolicy,
    /// Whether the running gateway treats its own clients as local. Versions from 2026.4 on do so
    /// even if they trust 127.0.0.1 as a proxy.
    pub knows_local_clients: bool,
}

/// Why the gateway's configuration file was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// No file was named, and the gateway's state directory is not configured or has none.
    NotNamed,
    /// The file can't be read or is not JSON5. The field is the error.
    Failed(String),
}

/// Reads the gateway's configuration `file`.
///
/// # Errors
/// See [`Unread`].
pub fn read(file: Option<&Path>) -> Result<Value, Unread> {
    let file = file.ok_or(Unread::NotNamed)?;
    files::read_config(file).map_err(|error| Unread::Failed(error_chain(&error)))
}

/// Adds the finding about a file that was not read.
pub fn judge_unread_file(read: Result<(), &Unread>, report: &mut Report) {
    match read {
        Ok(()) => {}
        Err(Unread::NotNamed) => {
            let remedy = Remedy::in_words("give the gateway's openclaw.json with --openclaw-config FILE");
            report.add_finding(&kind::OPENCLAW_UNREAD, "no --openclaw-config", remedy);
        }
        Err(Unread::Failed(error)) => {
            let remedy = Remedy::in_words("name by --openclaw-config the gateway's own file, which is JSON5");
            report.add_finding(&kind::OPENCLAW_CONFIG, error.as_str(), remedy);
        }
    }
}

/// Adds the findings about `openclaw_json`, the content of the gateway's configuration file.
pub fn judge(openclaw_json: &Value, wanted: &Wanted, report: &mut Report) {
    let before = report.findings.len();
    let gateway = &openclaw_json["gateway"];
    if !openclaw_json["$include"].is_null() || !gateway["$include"].is_null() {
        let remedy = Remedy::in_words("check the included files one by one");
        report.add_finding(&kind::OPENCLAW_INCLUDE, "openclaw.json has a $include", remedy);
    }
    if gateway["mode"] == "remote" {
        let remedy = Remedy::OpenClaw { key: "gateway.mode", value: json!("local") };
        report.add_finding(&kind::GATEWAY_MODE, "gateway.mode is \"remote\"", remedy);
    }
    if let Some(bind) = gateway["bind"].as_str().filter(|bind| *bind != "loopback") {
        report.add_finding(&kind::GATEWAY_EXPOSED, format!("gateway.bind is {bind:?}"), bind_loopback_remedy());
    }
    if gateway["tls"]["enabled"] == true {
        report.add_finding(&kind::GATEWAY_TLS, "gateway.tls.enabled is true", no_tls_remedy());
    }
    // If the key is missing, the gateway uses its default port.
    let port = gateway["port"].as_u64().unwrap_or(u64::from(crate::config::GATEWAY_PORT));
    if port != u64::from(wanted.gateway.port()) {
        let remedy = Remedy::OpenClaw { key: "gateway.port", value: json!(wanted.gateway.port()) };
        report.add_finding(
            &kind::GATEWAY_PORT,
            format!("gateway.port is {port}, while loopgate connects to {}", wanted.gateway),
            remedy,
        );
    }
    if gateway["auth"]["mode"] == "none" {
        let remedy = Remedy::OpenClaw { key: "gateway.auth.mode", value: json!("token") };
        report.add_finding(&kind::GATEWAY_AUTH, "gateway.auth.mode is \"none\"", remedy);
    }
    judge_identity_headers(&gateway["auth"], &wanted.policy, report);
    judge_trusted_proxies(&gateway["trustedProxies"], wanted, report);
    if gateway["auth"]["mode"] == "trusted-proxy" {
        judge_proxy_auth(&gateway["auth"], report);
    }
    judge_control_ui(&gateway["controlUi"], report);
    if strings_in(&gateway["controlUi"]["allowedOrigins"]).any(|origin| origin == "*") {
        let remedy = Remedy::in_words(
            "in openclaw.json list in gateway.controlUi.allowedOrigins what a browser's address bar shows, and no \
             \"*\"",
        );
        report.add_finding(&kind::ORIGIN_ANY, "gateway.controlUi.allowedOrigins has \"*\"", remedy);
    }
    if report.findings.len() == before {
        report.add_passed("openclaw.json", "nothing in it needs to change");
    }
}

/// Adds the findings about keys that keep `auth.mode: "trusted-proxy"` from working behind
/// loopgate.
fn judge_proxy_auth(auth: &Value, report: &mut Report) {
    if auth["trustedProxy"]["allowLoopback"] != true {
        let description = "gateway.auth.mode is \"trusted-proxy\" without gateway.auth.trustedProxy.allowLoopback";
        let remedy = Remedy::OpenClaw { key: "gateway.auth.trustedProxy.allowLoopback", value: json!(true) };
        report.add_finding(&kind::PROXY_AUTH_LOOPBACK, description, remedy);
    }
    if !auth["token"].is_null() {
        let description = "gateway.auth.mode is \"trusted-proxy\", and there is a gateway.auth.token";
        let remedy = Remedy::in_words(
            "run `openclaw config unset gateway.auth.token` where the gateway is, and take OPENCLAW_GATEWAY_TOKEN out \
             of its environment",
        );
        report.add_finding(&kind::PROXY_AUTH_TOKEN, description, remedy);
    }
}

/// Adds a finding for each header that the gateway trusts in `auth.mode: "trusted-proxy"`, but that
/// any client can send through loopgate. Adds nothing if `auth.mode` has another value.
fn judge_identity_headers(auth: &Value, policy: &LanePolicy, report: &mut Report) {
    if auth["mode"].as_str().is_some_and(|mode| mode != "trusted-proxy") {
        return;
    }
    let proxy = &auth["trustedProxy"];
    let user = proxy["userHeader"].as_str().map(|name| ("userHeader", name));
    for (key, header) in
        user.into_iter().chain(strings_in(&proxy["requiredHeaders"]).map(|name| ("requiredHeaders", name)))
    {
        if header.parse::<HeaderName>().is_ok_and(|name| policy.controls_header(&name)) {
            continue;
        }
        let description =
            format!("gateway.auth.trustedProxy.{key} has {header:?}, which loopgate passes on from any client");
        let remedy = Remedy::in_words(format!(
            "use x-forwarded-user, which loopgate sets, or add {header:?} to external.identity_headers, so that only \
             trusted proxies may send it"
        ));
        report.add_finding(&kind::IDENTITY_HEADER, description, remedy);
    }
}

/// Adds a finding for each option that makes the gateway's control page less safe.
fn judge_control_ui(control_ui: &Value, report: &mut Report) {
    let switches = [
        ("dangerouslyDisableDeviceAuth", "gateway.controlUi.dangerouslyDisableDeviceAuth", &kind::DEVICE_AUTH),
        (
            "dangerouslyAllowHostHeaderOriginFallback",
            "gateway.controlUi.dangerouslyAllowHostHeaderOriginFallback",
            &kind::HOST_ORIGIN,
        ),
        ("allowInsecureAuth", "gateway.controlUi.allowInsecureAuth", &kind::INSECURE_AUTH),
    ];
    for (name, key, kind) in switches {
        if control_ui[name] == true {
            report.add_finding(kind, format!("{key} is true"), Remedy::OpenClaw { key, value: json!(false) });
        }
    }
}

/// Adds the findings about `gateway.trustedProxies`, of which exactly the external lane's source
/// should be an entry.
fn judge_trusted_proxies(list: &Value, wanted: &Wanted, report: &mut Report) {
    let source = wanted.external_source;
    let mut is_trusted = false;
    for entry in strings_in(list) {
        let description = format!("gateway.trustedProxies has {entry:?}");
        let net = entry.parse::<IpNet>().ok().or_else(|| entry.parse::<IpAddr>().ok().map(IpNet::from));
        let Some(net) = net else {
            report.add_finding(
                &kind::PROXIES_WIDE,
                format!("{description}, which is no address"),
                trust_exactly_remedy(source),
            );
            continue;
        };
        is_trusted |= net.contains(&source);
        let firsts: [IpAddr; 2] = [std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
        if !wanted.knows_local_clients && firsts.iter().any(|first| net.contains(first)) {
            report.add_finding(&kind::PROXIES_LOOPBACK, description, trust_exactly_remedy(source));
        } else if net != IpNet::from(source) {
            report.add_finding(&kind::PROXIES_WIDE, description, trust_exactly_remedy(source));
        }
    }
    if !is_trusted {
        let description = if list.is_null() {
            "there is no gateway.trustedProxies".into()
        } else {
            format!("gateway.trustedProxies is {list}")
        };
        report.add_finding(&kind::PROXIES_MISSING, description, trust_exactly_remedy(source));
    }
}

fn strings_in(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_not_read_is_a_finding() {
        let failed = read(Some(Path::new("/nope/openclaw.json"))).unwrap_err();
        let table = [
            (Ok(()), &[][..]),
            (Err(&Unread::NotNamed), &["openclaw-config-unread"]),
            (Err(&failed), &["openclaw-config"]),
        ];
        for (read, ids) in table {
            let mut report = Report::default();
            judge_unread_file(read, &mut report);
            assert_eq!(report.ids(), ids, "{read:?}");
        }
        assert_eq!(read(None), Err(Unread::NotNamed));
    }

    /// Asserts which findings each configuration of the gateway's has.
    fn assert_findings(table: &[(&str, &[&str])]) {
        let mut config = crate::config::Config::default();
        config.external.keep_headers = vec![HeaderName::from_static("x-kept-user")];
        let wanted = Wanted {
            gateway: "127.0.0.1:18789".parse().unwrap(),
            external_source: "127.0.0.2".parse().unwrap(),
            policy: LanePolicy::new(&config),
            knows_local_clients: false,
        };
        for (text, expected) in table {
            let mut report = Report::default();
            judge(&json5::from_str(text).unwrap(), &wanted, &mut report);
            assert_eq!(report.ids(), *expected, "{text}");
        }
    }

    #[test]
    fn each_wrong_key_is_found() {
        assert_findings(&[
            ("{gateway: {bind: 'loopback', trustedProxies: ['127.0.0.2'],}} // fine", &[]),
            ("{gateway: {trustedProxies: ['127.0.0.2/32']}}", &[]),
            ("{}", &["trusted-proxies-missing"]),
            ("{gateway: {bind: 'lan', trustedProxies: ['127.0.0.2']}}", &["gateway-exposed"]),
            ("{gateway: {bind: 'custom', trustedProxies: ['127.0.0.2']}}", &["gateway-exposed"]),
            ("{gateway: {tls: {enabled: true}, trustedProxies: ['127.0.0.2']}}", &["gateway-tls"]),
            ("{gateway: {mode: 'remote', trustedProxies: ['127.0.0.2']}}", &["gateway-mode"]),
            ("{gateway: {port: 3000, trustedProxies: ['127.0.0.2']}}", &["gateway-port"]),
            ("{gateway: {auth: {mode: 'none'}, trustedProxies: ['127.0.0.2']}}", &["gateway-auth"]),
            ("{gateway: {auth: {mode: 'trusted-proxy'}, trustedProxies: ['127.0.0.2']}}", &["trusted-proxy-auth"]),
            (
                "{gateway: {auth: {mode: 'trusted-proxy', token: 'x', trustedProxy: {allowLoopback: true}}, \
                 trustedProxies: ['127.0.0.2']}}",
                &["trusted-proxy-token"],
            ),
            (
                "{gateway: {auth: {mode: 'trusted-proxy', trustedProxy: {allowLoopback: true}}, \
                 trustedProxies: ['127.0.0.2']}}",
                &[],
            ),
            (
                "{gateway: {controlUi: {dangerouslyDisableDeviceAuth: true}, trustedProxies: ['127.0.0.2']}}",
                &["device-auth-off"],
            ),
            (
                "{gateway: {controlUi: {dangerouslyAllowHostHeaderOriginFallback: true}, trustedProxies: \
                 ['127.0.0.2']}}",
                &["origin-by-host"],
            ),
            ("{gateway: {controlUi: {allowInsecureAuth: true}, trustedProxies: ['127.0.0.2']}}", &["insecure-auth"]),
            (
                "{gateway: {trustedProxies: ['127.0.0.1', '::1']}}",
                &["trusted-proxies-loopback", "trusted-proxies-missing"],
            ),
            ("{gateway: {trustedProxies: ['127.0.0.0/8']}}", &["trusted-proxies-loopback"]),
            ("{gateway: {trustedProxies: ['127.0.0.2', '172.18.0.0/16']}}", &["trusted-proxies-wide"]),
            ("{gateway: {trustedProxies: ['127.0.0.2', '127.0.0.2/31']}}", &["trusted-proxies-wide"]),
            ("{gateway: {trustedProxies: ['caddy']}}", &["trusted-proxies-wide", "trusted-proxies-missing"]),
            ("{gateway: {trustedProxies: ['127.0.0.2'], controlUi: {allowedOrigins: ['*']}}}", &["origin-any"]),
            ("{$include: './other.json5', gateway: {trustedProxies: ['127.0.0.2']}}", &["openclaw-config-include"]),
        ]);
    }

    #[test]
    fn each_identity_header_that_clients_can_send_is_found() {
        assert_findings(&[
            ("{gateway: {auth: {trustedProxy: {userHeader: 'X-Forwarded-User'}}, trustedProxies: ['127.0.0.2']}}", &[]),
            (
                "{gateway: {auth: {trustedProxy: {userHeader: 'x-authenticated-user'}}, \
                 trustedProxies: ['127.0.0.2']}}",
                &[],
            ),
            (
                "{gateway: {auth: {trustedProxy: {userHeader: 'x-forwarded-user', \
                 requiredHeaders: ['x-forwarded-proto']}}, trustedProxies: ['127.0.0.2']}}",
                &[],
            ),
            (
                "{gateway: {auth: {trustedProxy: {userHeader: 'x-who'}}, trustedProxies: ['127.0.0.2']}}",
                &["identity-header-open"],
            ),
            (
                "{gateway: {auth: {trustedProxy: {userHeader: 'x-user', \
                 requiredHeaders: ['x-proxy-secret', 'x-kept-user']}}, trustedProxies: ['127.0.0.2']}}",
                &["identity-header-open", "identity-header-open"],
            ),
        ]);
    }

    #[test]
    fn trust_in_all_of_loopback_is_no_error_to_a_gateway_that_knows_its_local_clients() {
        let error = &["trusted-proxies-loopback"][..];
        let warning = &["trusted-proxies-wide"][..];
        for (list, knows_local_clients, expected) in [
            ("['127.0.0.0/8']", true, warning),
            ("['127.0.0.2', '127.0.0.1', '::1']", true, warning),
            ("['127.0.0.0/8']", false, error),
            ("['127.0.0.2', '127.0.0.1', '::1']", false, error),
        ] {
            let wanted = Wanted {
                gateway: "127.0.0.1:18789".parse().unwrap(),
                external_source: "127.0.0.2".parse().unwrap(),
                policy: LanePolicy::new(&crate::config::Config::default()),
                knows_local_clients,
            };
            let mut report = Report::default();
            let config = format!("{{gateway: {{trustedProxies: {list}}}}}");
            judge(&json5::from_str(&config).unwrap(), &wanted, &mut report);
            assert_eq!(report.ids(), expected, "{list} {knows_local_clients}");
        }
    }
}

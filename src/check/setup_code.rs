//! The finding about setup codes, with which phones are paired. A setup code contains the gateway's
//! URL. A gateway on loopback knows no URL that a phone can reach, unless its configuration has
//! one. Without a URL the gateway advises `gateway.bind: "lan"`, which would bypass loopgate.

use serde_json::{Value, json};

use super::catalogue as kind;
use super::finding::{Remedy, Report};

/// The key that contains the URL for setup codes, in every version of the gateway.
const KEY: &str = "plugins.entries.device-pair.config.publicUrl";

/// Judges whether the gateway's setup codes contain a URL that phones can reach. Adds nothing if
/// the plugin `device-pair` is off. `origin` is the origin at which clients from outside reach
/// loopgate, if it is known.
pub fn judge(openclaw_json: &Value, origin: Option<&str>, report: &mut Report) {
    let (plugins, gateway) = (&openclaw_json["plugins"], &openclaw_json["gateway"]);
    let plugin = &plugins["entries"]["device-pair"];
    let is_off = plugins["enabled"] == false
        || plugin["enabled"] == false
        || strings_in(&plugins["deny"]).any(|plugin| plugin == "device-pair");
    if is_off {
        return;
    }
    let remedy = || match origin {
        Some(origin) => Remedy::OpenClaw { key: KEY, value: json!(origin) },
        None => Remedy::in_words(format!(
            "in openclaw.json set {KEY} to the URL at which phones reach loopgate: https://HOST:PORT"
        )),
    };
    let stated = non_empty_text(&plugin["config"]["publicUrl"]);
    if let Some(url) = stated.filter(|url| !has_tls_scheme(url)) {
        let description = format!("{KEY} is {url:?}, which is not encrypted: loopgate's port speaks TLS only");
        return report.add_finding(&kind::SETUP_CODE, description, remedy());
    }
    if !plugins["allow"].is_null() && !strings_in(&plugins["allow"]).any(|plugin| plugin == "device-pair") {
        // The plugin is not loaded, so its URL is not read.
        let description = "plugins.allow does not list device-pair, which makes setup codes";
        return report.add_finding(
            &kind::SETUP_CODE,
            description,
            Remedy::in_words("in openclaw.json add \"device-pair\" to plugins.allow"),
        );
    }
    let tailscale =
        non_empty_text(&gateway["tailscale"]["mode"]).is_some_and(|mode| matches!(mode, "serve" | "funnel"));
    let advertised_url = [stated, non_empty_text(&gateway["publicOrigin"]), non_empty_text(&gateway["remote"]["url"])]
        .into_iter()
        .flatten()
        .next();
    match advertised_url {
        Some(url) => report.add_passed("setup codes", format!("they lead phones to {url}")),
        None if tailscale => report.add_passed("setup codes", "they lead phones to Tailscale's name of this machine"),
        None => {
            let description = "the gateway knows no URL that phones can reach: `openclaw qr` and /pair advise \
                        gateway.bind=lan, which must stay loopback";
            report.add_finding(&kind::SETUP_CODE, description, remedy());
        }
    }
}

/// Returns whether the scheme of `url` is one with TLS. To the gateway, which speaks no TLS itself,
/// a URL without a scheme is one without TLS.
fn has_tls_scheme(url: &str) -> bool {
    ["https://", "wss://"]
        .iter()
        .any(|scheme| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
}

fn non_empty_text(value: &Value) -> Option<&str> {
    value.as_str().map(str::trim).filter(|text| !text.is_empty())
}

fn strings_in(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_without_a_public_url_is_found() {
        let url =
            |url: &str| format!("{{plugins: {{entries: {{'device-pair': {{config: {{publicUrl: '{url}'}}}}}}}}}}");
        let table: [(String, &[&str], &str); 14] = [
            ("{}".into(), &["setup-code-url"], "advise gateway.bind=lan"),
            (url("https://gateway.example.com:18789"), &[], ""),
            (url("WSS://gateway.example.com"), &[], ""),
            (url("http://gateway.example.com:18789"), &["setup-code-url"], "is not encrypted"),
            (url("ws://10.0.0.5:18789"), &["setup-code-url"], "is not encrypted"),
            (url("gateway.example.com"), &["setup-code-url"], "is not encrypted"),
            (url("  "), &["setup-code-url"], "knows no URL"),
            ("{gateway: {publicOrigin: 'https://gateway.example.com'}}".into(), &[], ""),
            ("{gateway: {remote: {url: 'wss://gateway.example.com'}}}".into(), &[], ""),
            ("{gateway: {tailscale: {mode: 'serve'}}}".into(), &[], ""),
            ("{gateway: {tailscale: {mode: 'off'}}}".into(), &["setup-code-url"], "knows no URL"),
            ("{plugins: {allow: ['telegram']}}".into(), &["setup-code-url"], "plugins.allow"),
            ("{plugins: {entries: {'device-pair': {enabled: false}}}}".into(), &[], ""),
            ("{plugins: {deny: ['device-pair']}}".into(), &[], ""),
        ];
        for (config, expected, words) in table {
            let mut report = Report::default();
            judge(&json5::from_str(&config).unwrap(), None, &mut report);
            assert_eq!(report.ids(), expected, "{config}");
            assert!(report.findings.iter().all(|finding| finding.seen[0].contains(words)), "{:?}", report.findings);
        }
    }

    #[test]
    fn the_remedy_is_the_origin_where_that_is_known() {
        let mut report = Report::default();
        judge(&json!({}), Some("https://gateway.example.com:18789"), &mut report);
        let value = json!("https://gateway.example.com:18789");
        assert_eq!(report.findings[0].remedy, Remedy::OpenClaw { key: KEY, value });
        let mut report = Report::default();
        judge(&json!({}), None, &mut report);
        assert!(report.findings[0].remedy.to_string().contains("publicUrl to the URL at which phones reach loopgate"));
    }
}

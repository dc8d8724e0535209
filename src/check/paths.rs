//! Findings about the paths that external clients may request.

use http::Method;

use super::catalogue as kind;
use super::finding::{Remedy, Report};
use crate::config::External;
use crate::lane::check_path_rules;

/// The prefixes of the gateway's HTTP API, with a request of each. The API asks for a token, but
/// not for a paired device.
const HTTP_API: [(&str, &str); 2] = [("/tools/", "/tools/invoke"), ("/v1/", "/v1/chat/completions")];

/// Adds the finding about the gateway's HTTP API, unless `[[external.paths]]` closes it to external
/// clients. A scope cap without `operator.admin` closes it as well.
pub fn judge(external: &External, gateway_port: u16, report: &mut Report) {
    let capped = !external.scopes.is_empty() && !external.scopes.iter().any(|scope| scope == "operator.admin");
    let open = |(_, path): &&(&str, &str)| {
        !capped && check_path_rules(&Method::POST, path, false, &external.paths, gateway_port).is_ok()
    };
    let open: Vec<_> = HTTP_API.iter().filter(open).map(|(prefix, _)| *prefix).collect();
    if open.is_empty() {
        return report.add_passed("paths", "external clients can't use the gateway's HTTP API (/tools/, /v1/)");
    }
    let blocks: Vec<_> = open.iter().map(|prefix| format!("[[external.paths]] with deny = {prefix:?}")).collect();
    let remedy = format!("unless clients outside need it, add {} before other rules", blocks.join(" and "));
    report.add_finding(
        &kind::HTTP_API_OPEN,
        format!("[[external.paths]] lets external clients use {}", open.join(" and ")),
        Remedy::in_words(remedy),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PathRule;

    fn rule(allow: bool, prefix: &str) -> PathRule {
        PathRule { allow, prefix: prefix.into(), methods: Vec::new(), upgrade: false, port: None }
    }

    #[test]
    fn the_http_api_is_reported_unless_rules_close_it() {
        let deny = |prefix| rule(false, prefix);
        for (rules, open) in [
            (vec![], Some("/tools/ and /v1/")),
            (vec![deny("/tools/")], Some("/v1/")),
            (vec![deny("/tools/"), deny("/v1")], None),
            (vec![rule(true, "/hooks/")], None),
            (vec![rule(true, "/")], Some("/tools/ and /v1/")),
            (vec![deny("/tools/"), rule(true, "/v1/")], Some("/v1/")),
        ] {
            let mut report = Report::default();
            let mut external = External { paths: rules, ..crate::config::Config::default().external };
            judge(&external, 18789, &mut report);
            let expected: &[&str] = if open.is_some() { &["http-api-open"] } else { &[] };
            assert_eq!(report.ids(), expected, "{external:?}");
            assert!(open.is_none_or(|open| report.findings[0].seen[0].ends_with(open)), "{:?}", report.findings);
            external.scopes = vec!["operator.read".into()];
            report = Report::default();
            judge(&external, 18789, &mut report);
            assert_eq!(report.ids(), [""; 0], "{external:?}");
        }
    }
}

//! `[[external.paths]]`: which paths external clients may request.
//!
//! The gateway decodes and normalizes paths in its own way. So if there are rules, a path that two
//! parsers could read differently is refused.

use std::borrow::Cow;

use http::Method;

use super::request_check::RequestRefusal;
use crate::config::PathRule;

/// Applies the `rules` for the gateway's `port` to `path`, which has no query. The first rule that
/// matches decides.
///
/// If no rule matches, the request is refused if there is an `allow` rule, else allowed. `allow`
/// rules compare paths and methods exactly, and `deny` rules ignore case, so that a doubtful match
/// never opens a path. The gateway accepts WebSockets on every path, so an `allow` rule applies to
/// upgrades only if it has `upgrade`.
///
/// # Errors
/// [`RequestRefusal::AmbiguousPath`] or [`RequestRefusal::PathDenied`].
pub fn check_path_rules(
    method: &Method,
    path: &str,
    is_upgrade: bool,
    rules: &[PathRule],
    port: u16,
) -> Result<(), RequestRefusal> {
    let mut rules = rules.iter().filter(|rule| rule.port.is_none_or(|of_rule| of_rule == port)).peekable();
    if rules.peek().is_none() {
        return Ok(());
    }
    let decoded = decode_path(path).ok_or(RequestRefusal::AmbiguousPath)?;
    let matching =
        rules.clone().find(|rule| applies_to(rule, method, is_upgrade) && matches_path(rule, path, &decoded));
    let allowed = matching.map_or_else(|| rules.all(|rule| !rule.allow), |rule| rule.allow);
    if allowed { Ok(()) } else { Err(RequestRefusal::PathDenied) }
}

/// Returns whether `rule` applies to `method`, and to upgrades if the request asks for one.
fn applies_to(rule: &PathRule, method: &Method, is_upgrade: bool) -> bool {
    if rule.allow && is_upgrade && !rule.upgrade {
        return false;
    }
    let matches = |named: &Method| {
        let same = named.as_str().eq_ignore_ascii_case(method.as_str());
        // A response to HEAD reveals the fields of that to GET (RFC 9110 section 9.3.2), so denying
        // GET denies HEAD.
        let alike = method.as_str().eq_ignore_ascii_case("HEAD") && named.as_str().eq_ignore_ascii_case("GET");
        named == method || (!rule.allow && (same || alike))
    };
    rule.methods.is_empty() || rule.methods.iter().any(matches)
}

/// Returns whether the prefix of `rule` matches `path`, or `decoded`, the same path after
/// percent-decoding.
///
/// The gateway routes to plugins twice: by the path as a URL parser reads it, and by the decoded
/// path as the same parser reads it. In the decoded path `?` and `#` end the path, and blanks at
/// its end are dropped. The parser encodes some characters that are allowed here, and for the
/// gateway a `%` after a prefix ends the segment (OpenClaw 2026.9 `gateway/security-path`,
/// `plugins-http/route-match`). So for a `deny` rule every character ends a segment, except those
/// that all parsers regard as part of it.
fn matches_path(rule: &PathRule, path: &str, decoded: &str) -> bool {
    if rule.allow {
        let rest = decoded.strip_prefix(rule.prefix.as_str());
        return rest.is_some_and(|rest| rule.prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'));
    }
    // A rule `deny "/hooks/"` denies `/hooks` too.
    let stem = rule.prefix.strip_suffix('/').unwrap_or(&rule.prefix).as_bytes();
    let has_prefix = |path: &str| {
        let split = path.as_bytes().split_at_checked(stem.len());
        split.is_some_and(|(head, rest)| {
            head.eq_ignore_ascii_case(stem) && rest.first().is_none_or(|next| !continues_segment(*next))
        })
    };
    has_prefix(decoded) || has_prefix(path)
}

/// Returns whether every parser regards `byte` as part of the path segment: `pchar` of RFC 3986
/// section 3.3 without `%` and `;`.
fn continues_segment(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte)
}

/// Decodes the percent-encoding of `path`; `None` if the result is not UTF-8, or if another parser
/// could read the path differently.
pub fn decode_path(path: &str) -> Option<Cow<'_, str>> {
    let path = if path.contains('%') { Cow::Owned(percent_decode(path)?) } else { Cow::Borrowed(path) };
    is_unambiguous(&path).then_some(path)
}

/// Decodes the percent-encoding of `path`; `None` if it is malformed, encodes a control character
/// or one that would change the path's structure, or does not result in UTF-8.
fn percent_decode(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (high, low) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
        let decoded = u8::try_from(high * 16 + low).ok()?;
        // A parser that decodes these first would see another path.
        if matches!(decoded, b'/' | b'\\' | b'.' | b'%' | b';') || decoded.is_ascii_control() {
            return None;
        }
        out.push(decoded);
    }
    String::from_utf8(out).ok()
}

/// Returns whether `path` is absolute and has no empty segment but the last, no `.` or `..`, and no
/// parameters.
fn is_unambiguous(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.starts_with(b"/")
        && !bytes.windows(2).any(|pair| pair == b"//")
        && !bytes.iter().any(|byte| matches!(byte, b'\\' | b';'))
        && !bytes.split(|byte| *byte == b'/').any(|segment| matches!(segment, b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, prefix: &str, methods: &[Method]) -> PathRule {
        PathRule { allow, prefix: prefix.into(), methods: methods.to_vec(), upgrade: false, port: None }
    }

    #[test]
    fn an_allow_rule_opens_a_path_for_upgrades_only_with_upgrade_set() {
        let hooks = [rule(true, "/hooks/", &[])];
        let live = [PathRule { upgrade: true, ..rule(true, "/live", &[]) }, rule(true, "/", &[])];
        let no_tools = [rule(false, "/tools/", &[])];
        let denied = Err(RequestRefusal::PathDenied);
        for (path, rules, expected) in [
            ("/hooks/a", &hooks[..], denied),
            ("/", &hooks, denied),
            ("/live", &live, Ok(())),
            ("/other", &live, denied),
            ("/", &no_tools, Ok(())),
            ("/tools/a", &no_tools, denied),
            ("/", &[], Ok(())),
        ] {
            assert_eq!(check_path_rules(&Method::GET, path, true, rules, 18789), expected, "{path} {rules:?}");
        }
    }

    #[test]
    fn a_rule_with_a_port_is_for_that_port_alone() {
        let for_port = |port, rule: PathRule| PathRule { port: Some(port), ..rule };
        let rules =
            [for_port(3334, rule(true, "/voice", &[])), for_port(18792, rule(false, "/", &[])), rule(false, "/x", &[])];
        for (port, path, open) in [
            (18789, "/", true),
            (18789, "/voice", true),
            (18789, "/x", false),
            (3334, "/voice", true),
            (3334, "/", false),
            (18792, "/voice", false),
        ] {
            let checked = check_path_rules(&Method::GET, path, false, &rules, port);
            assert_eq!(checked.is_ok(), open, "{path} at {port}: {checked:?}");
        }
        assert!(check_path_rules(&Method::GET, "/%2F", false, &rules[..1], 18789).is_ok(), "no rule is for this port");
    }

    #[test]
    fn the_first_matching_rule_decides_and_ambiguous_paths_are_refused() {
        let hooks = [rule(true, "/hooks/", &[Method::POST])];
        let no_tools = [rule(false, "/tools/", &[]), rule(false, "/Admin", &[])];
        let reads = [rule(false, "/private/", &[Method::GET])];
        let lower = Method::from_bytes(b"get").unwrap();
        let open_reads = [rule(true, "/private/", &[Method::GET])];
        let exception = [rule(true, "/tools/open", &[]), rule(false, "/tools", &[])];
        let (denied, ambiguous) = (Err(RequestRefusal::PathDenied), Err(RequestRefusal::AmbiguousPath));
        for (method, path, rules, expected) in [
            (Method::GET, "/%2e%2e/", &[][..], Ok(())),
            (Method::POST, "/hooks/a", &hooks, Ok(())),
            (Method::POST, "/hooks/%61", &hooks, Ok(())),
            (Method::GET, "/hooks/a", &hooks, denied),
            (Method::POST, "/hooks", &hooks, denied),
            (Method::POST, "/HOOKS/a", &hooks, denied),
            (Method::POST, "/hooks%3Fa", &hooks, denied),
            (Method::POST, "/hooks%2", &hooks, ambiguous),
            (Method::POST, "/hooks/a%3Fb%23c%20d", &hooks, Ok(())),
            (Method::POST, "/", &hooks, denied),
            (Method::POST, "/hooks/../tools/invoke", &hooks, ambiguous),
            (Method::POST, "/hooks/%2e%2e/tools", &hooks, ambiguous),
            (Method::POST, "/hooks/..%2ftools", &hooks, ambiguous),
            (Method::POST, "/hooks/%5c..%5ctools", &hooks, ambiguous),
            (Method::POST, "/hooks//a", &hooks, ambiguous),
            (Method::POST, "/hooks/%252e", &hooks, ambiguous),
            (Method::POST, "/hooks/%zz", &hooks, ambiguous),
            (Method::POST, "/hooks/%00", &hooks, ambiguous),
            (Method::POST, "/hooks/a;b", &hooks, ambiguous),
            (Method::POST, "*", &hooks, ambiguous),
            (Method::POST, "/tools/invoke", &no_tools, denied),
            (Method::POST, "/TOOLS/invoke", &no_tools, denied),
            (Method::POST, "/t%6fols/invoke", &no_tools, denied),
            (Method::POST, "/tools", &no_tools, denied),
            (Method::POST, "/toolshed", &no_tools, Ok(())),
            (Method::GET, "/admin/x", &no_tools, denied),
            (Method::GET, "/administer", &no_tools, Ok(())),
            (Method::GET, "/tools%3Fx", &no_tools, denied),
            (Method::GET, "/tools%23x", &no_tools, denied),
            (Method::GET, "/t%6Fols%3fx", &no_tools, denied),
            (Method::GET, "/admin%20", &no_tools, denied),
            (Method::GET, "/%61dmin%20x", &no_tools, denied),
            (Method::GET, "/tools%41", &no_tools, denied),
            (Method::GET, "/Tools%C3%A4", &no_tools, denied),
            (Method::GET, "/%74ools%C3%A4", &no_tools, denied),
            (Method::GET, "/tools\u{e4}", &no_tools, denied),
            (Method::GET, "/tools{", &no_tools, denied),
            (Method::GET, "/tools\"x", &no_tools, denied),
            (Method::GET, "/tools-x", &no_tools, Ok(())),
            (Method::GET, "/tools.x", &no_tools, Ok(())),
            (Method::GET, "/administer%3F/admin", &no_tools, Ok(())),
            (Method::GET, "/x%23/tools/invoke", &no_tools, Ok(())),
            (Method::GET, "/", &no_tools, Ok(())),
            (Method::GET, "/tools/open/x", &exception, Ok(())),
            (Method::GET, "/tools/opened", &exception, denied),
            (Method::GET, "/private/x", &reads, denied),
            (Method::HEAD, "/private/x", &reads, denied),
            (lower.clone(), "/private/x", &reads, denied),
            (Method::from_bytes(b"hEAd").unwrap(), "/private/x", &reads, denied),
            (Method::POST, "/private/x", &reads, Ok(())),
            (Method::GET, "/private/x", &open_reads, Ok(())),
            (Method::HEAD, "/private/x", &open_reads, denied),
            (lower, "/private/x", &open_reads, denied),
        ] {
            assert_eq!(check_path_rules(&method, path, false, rules, 18789), expected, "{method} {path} {rules:?}");
        }
    }
}

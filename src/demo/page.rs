//! The page that a browser gets. It loads no other resource, and escapes everything that a client
//! sent.

use std::fmt::Write;

use super::classify::Class;
use super::received::{Received, is_attribution};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Returns the page that shows `received`.
pub(super) fn render(received: &Received) -> String {
    let (class, meaning) = match received.class {
        Class::Local => ("local", "The gateway sees a client on its own host, and would pair it without approval."),
        Class::Remote => ("remote", "The gateway sees a remote client, whose pairing needs approval."),
        Class::Refused => {
            ("refused", "The gateway would answer 403: the proxy is not trusted, or does not state its client.")
        }
    };
    let (attribution, others): (Vec<_>, Vec<_>) =
        received.headers.iter().partition(|(name, _)| name == "host" || is_attribution(name));
    let nothing = if received.attribution_fields().is_empty() {
        "<tr><td colspan=\"2\">no header that states where the request comes from</td></tr>\n"
    } else {
        ""
    };
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{class} · loopgate demo</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
<main>
<p class="brand">loopgate demo</p>
<section class="verdict {class}">
<h1>{class}</h1>
<p>{meaning}</p>
<p class="because">Because {reason}.</p>
</section>
<section>
<h2>The request as the gateway received it</h2>
<table>
<tbody class="attribution">
<tr><th scope="row">seen from</th><td>{from}</td></tr>
<tr><th scope="row">request</th><td>{method} {target}</td></tr>
{attribution}{nothing}</tbody>
<tbody>
{others}</tbody>
</table>
</section>
<section>
<h2>WebSocket</h2>
<p id="websocket">This page opens one through loopgate if scripts are enabled.</p>
<form id="echo" hidden><input name="text" aria-label="Message" placeholder="a message" autocomplete="off"><button>Send</button></form>
<ol id="log" aria-live="polite"></ol>
</section>
<footer>The same as <a href="/json">JSON</a>. This is a stand-in for a gateway; it classifies clients as OpenClaw 2026.9 does.</footer>
</main>
<script>
{SCRIPT}</script>
</html>
"#,
        attribution = render_rows(&attribution),
        others = render_rows(&others),
        reason = escape_html(&received.reason),
        from = escape_html(&received.from.to_string()),
        method = escape_html(&received.method),
        target = escape_html(&received.target),
    )
}

fn render_rows(fields: &[&(String, String)]) -> String {
    fields.iter().fold(String::new(), |mut rows, (name, value)| {
        let _ = writeln!(rows, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape_html(name), escape_html(value));
        rows
    })
}

/// Escapes `text` for HTML content and quoted attributes.
fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sends_is_escaped() {
        let received = Received {
            from: "127.0.0.2:1".parse().unwrap(),
            method: "GET".into(),
            target: "/<script>".into(),
            headers: vec![("x-test".into(), "</td><img src=x onerror='alert(1)'>".into())],
            class: Class::Remote,
            reason: "<b>".into(),
        };
        let page = render(&received);
        assert_eq!(page.matches("<script>").count(), 1);
        assert!(!page.contains("<img") && !page.contains("<b>"), "{page}");
        assert!(page.contains("&lt;/td&gt;&lt;img src=x onerror=&#39;alert(1)&#39;&gt;"), "{page}");
    }
}

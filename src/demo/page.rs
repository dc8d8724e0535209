//! The page that a browser gets: self-contained, and careful with what a client sent.

use std::fmt::Write;

use super::judge::Judgement;
use super::told::{Told, is_attribution};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page that shows `told`.
pub(super) fn render(told: &Told) -> String {
    let (judged, meaning) = match told.judged {
        Judgement::Local => ("local", "The gateway takes you for a client of its own host, and would pair you without asking."),
        Judgement::Remote => ("remote", "The gateway takes you for an outsider: somebody must approve your pairing."),
        Judgement::Refused => ("refused", "The gateway would answer 403: a proxy spoke for you, and did not say who you are."),
    };
    let (says_who, others): (Vec<_>, Vec<_>) = told.headers.iter().partition(|(name, _)| name == "host" || is_attribution(name));
    let nothing =
        if told.attribution().is_empty() { "<tr><td colspan=\"2\">and nothing about where you come from</td></tr>\n" } else { "" };
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{judged} · loopgate demo</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
<main>
<p class="brand">loopgate demo</p>
<section class="verdict {judged}">
<h1>{judged}</h1>
<p>{meaning}</p>
<p class="because">Because {because}.</p>
</section>
<section>
<h2>What the gateway is told about you</h2>
<table>
<tbody class="says-who">
<tr><th scope="row">seen from</th><td>{from}</td></tr>
<tr><th scope="row">request</th><td>{method} {target}</td></tr>
{says_who}{nothing}</tbody>
<tbody>
{others}</tbody>
</table>
</section>
<section>
<h2>WebSocket</h2>
<p id="websocket">This page opens one through loopgate, if it may run its script.</p>
<form id="echo" hidden><input name="text" aria-label="Message" placeholder="say something" autocomplete="off"><button>Send</button></form>
<ol id="log" aria-live="polite"></ol>
</section>
<footer>The same as <a href="/json">JSON</a>. This is a stand-in for a gateway; it judges as OpenClaw 2026.9 does.</footer>
</main>
<script>
{SCRIPT}</script>
</html>
"#,
        says_who = rows(&says_who),
        others = rows(&others),
        because = escape(&told.because),
        from = escape(&told.from.to_string()),
        method = escape(&told.method),
        target = escape(&told.target),
    )
}

fn rows(fields: &[&(String, String)]) -> String {
    fields.iter().fold(String::new(), |mut rows, (name, value)| {
        let _ = writeln!(rows, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value));
        rows
    })
}

/// `text` for HTML, in content and in quoted attributes.
fn escape(text: &str) -> String {
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
    fn what_a_client_sends_is_text_and_nothing_else() {
        let told = Told {
            from: "127.0.0.2:1".parse().unwrap(),
            method: "GET".into(),
            target: "/<script>".into(),
            headers: vec![("x-test".into(), "</td><img src=x onerror='alert(1)'>".into())],
            judged: Judgement::Remote,
            because: "<b>".into(),
        };
        let page = render(&told);
        assert_eq!(page.matches("<script>").count(), 1);
        assert!(!page.contains("<img") && !page.contains("<b>"), "{page}");
        assert!(page.contains("&lt;/td&gt;&lt;img src=x onerror=&#39;alert(1)&#39;&gt;"), "{page}");
    }
}

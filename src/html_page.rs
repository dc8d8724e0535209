//! The frame of loopgate's HTML pages: without scripts, and without anything that is loaded.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Renders a page with this title and style sheet; `head` is added to its head.
pub fn html_page(title: &str, style: &str, head: &Markup, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                (head)
                title { "loopgate: " (title) }
                style { (PreEscaped(style)) }
            }
            body { (body) }
        }
    }
    .into_string()
}

//! The frame of loopgate's HTML pages. A page has no scripts and loads no other resource.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Renders a page. `style` is its style sheet, and `head` further content of its `<head>` element.
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

//! Text for a terminal: tables with aligned columns, and colours.

use std::io::IsTerminal;

/// The emphasis of a text, from which its colour follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Ordinary text, without a colour.
    Plain,
    /// Text of less interest (dim).
    Quiet,
    /// A heading (bold).
    Strong,
    /// A good state (green).
    Good,
    /// A state that may need attention (yellow).
    Fair,
    /// A bad state (red).
    Bad,
}

/// Returns whether standard output gets colours: if it is a terminal, and `NO_COLOR` is unset or
/// empty (<https://no-color.org>).
pub fn stdout_gets_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns `text` in the colour of `tone`, or without colour unless `colours`. Control characters
/// are escaped.
pub fn paint(text: &str, tone: Tone, colours: bool) -> String {
    let text = escape_control_characters(text);
    let code = match tone {
        _ if !colours => return text,
        Tone::Plain => return text,
        Tone::Quiet => "2",
        Tone::Strong => "1",
        Tone::Good => "32",
        Tone::Fair => "33",
        Tone::Bad => "31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Escapes control characters, which could command the terminal.
fn escape_control_characters(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// A table of text.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<(String, Tone)>>,
}

impl Table {
    /// Creates a table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(headings.iter().map(|heading| (*heading, Tone::Quiet)));
        table
    }

    /// Adds a row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = (T, Tone)>) {
        self.rows.push(cells.into_iter().map(|(text, tone)| (escape_control_characters(&text.into()), tone)).collect());
    }

    /// Returns the rows as lines, indented by two spaces. The last cell of a row does not widen its
    /// column.
    pub fn render(&self, colours: bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter(|row| column + 1 < row.len()).filter_map(|row| row.get(column));
            cells.map(|(text, _)| text.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::from("  ");
            for (column, (cell, tone)) in row.iter().enumerate() {
                line.push_str(&paint(cell, *tone, colours));
                if column + 1 < row.len() {
                    line.push_str(&" ".repeat(widths[column].saturating_sub(cell.chars().count()) + 2));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_their_colours() {
        let mut table = Table::new(&["PEER", "LANE"]);
        table.row([("172.18.0.3:1", Tone::Good), ("agent", Tone::Plain)]);
        assert_eq!(table.render(false), "  PEER          LANE\n  172.18.0.3:1  agent\n");
        assert!(table.render(true).contains("\x1b[32m172.18.0.3:1\x1b[0m  agent"));
    }

    #[test]
    fn control_characters_in_a_cell_are_escaped() {
        let mut table = Table::default();
        table.row([("a\x1b]0;title\x07\nb", Tone::Plain)]);
        assert_eq!(table.render(true), "  a\\u{1b}]0;title\\u{7}\\nb\n");
    }
}

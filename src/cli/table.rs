//! Text for a terminal: aligned columns, and colour if the output is a terminal.

use std::io::IsTerminal;

/// What a cell is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Of less interest.
    Quiet,
    /// A heading.
    Strong,
    /// As it should be.
    Good,
    /// Worth a look.
    Fair,
    /// Wrong.
    Bad,
}

/// Whether to colour what goes to standard output (<https://no-color.org>).
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `text` in the colour of `tone`, if colours are wanted. What could command a terminal is made visible.
pub fn paint(text: &str, tone: Tone, colours: bool) -> String {
    let text = visible(text);
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

fn visible(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// Rows of cells.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<(String, Tone)>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(headings.iter().map(|heading| (*heading, Tone::Quiet)));
        table
    }

    /// Adds a row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = (T, Tone)>) {
        self.rows.push(cells.into_iter().map(|(text, tone)| (visible(&text.into()), tone)).collect());
    }

    /// The rows as lines, indented by two; the last cell of a row may be of any width.
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
    fn nothing_in_a_cell_commands_the_terminal() {
        let mut table = Table::default();
        table.row([("a\x1b]0;title\x07\nb", Tone::Plain)]);
        assert_eq!(table.render(true), "  a\\u{1b}]0;title\\u{7}\\nb\n");
    }
}

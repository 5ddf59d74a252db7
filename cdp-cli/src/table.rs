//! Tables for people: columns as wide as their widest cell, two spaces between them.

/// On which side of its column a cell stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet.
    #[must_use]
    pub fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One more row; missing cells are empty, those past the last column are dropped.
    pub fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().take(self.columns.len()).collect());
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All lines, each with its end. Control characters in cells cannot leave their place.
    #[must_use]
    pub fn render(&self) -> String {
        let headings = self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let rows: Vec<Vec<String>> = std::iter::once(headings)
            .chain(self.rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()))
            .collect();
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line.push_str(&match self.columns[column].1 {
                    Side::Left => format!("{cell:<width$}  "),
                    Side::Right => format!("{cell:>width$}  "),
                });
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text with control characters made visible: a label must not move the terminal's cursor.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("POINT", Side::Left), ("LSN", Side::Right), ("LABEL", Side::Left)]);
        table.row(["a".into(), "12345".into(), "\u{1b}[2J".into()]);
        table.row(["longer".into(), "1".into(), String::new()]);
        assert_eq!(table.render(), "POINT     LSN  LABEL\na       12345  \u{fffd}[2J\nlonger      1\n");
    }
}

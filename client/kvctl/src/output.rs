//! What a command prints: an [`Answer`] made in full before any of it is written, JSON documents,
//! and a small printer of aligned columns.
//!
//! Data go to standard output, messages to standard error. There is no colour anywhere, so there
//! is nothing for `NO_COLOR` to turn off. A reader that closes the pipe early has seen enough and
//! is no error.

use std::fmt;
use std::io::{ErrorKind, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::errors::exit;

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people
    Table,
    /// One JSON document on one line
    Json,
    /// One JSON document per line: lists are printed item by item
    Jsonl,
}

/// Everything that a command has to say, and its exit code.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub out: Vec<u8>,
    /// For standard error.
    pub err: String,
    /// The exit code.
    pub code: u8,
}

impl Answer {
    /// Text for people on standard output.
    #[must_use]
    pub fn text(out: String) -> Self {
        Self { out: out.into_bytes(), ..Self::default() }
    }

    /// One thing.
    pub fn one<T: Serialize>(format: Format, view: &T, table: impl FnOnce(&T) -> String) -> Self {
        Self::text(match format {
            Format::Table => table(view),
            Format::Json | Format::Jsonl => json_line(view),
        })
    }

    /// A list of things.
    pub fn list<T: Serialize>(
        format: Format,
        views: &[T],
        table: impl FnOnce(&[T]) -> String,
    ) -> Self {
        Self::text(match format {
            Format::Table => table(views),
            Format::Json => json_line(views),
            Format::Jsonl => views.iter().map(json_line).collect(),
        })
    }

    /// Writes the answer and returns the exit code.
    #[must_use]
    pub fn deliver(self) -> u8 {
        let mut out = std::io::stdout().lock();
        let written = out.write_all(&self.out).and_then(|()| out.flush());
        let mut err = std::io::stderr().lock();
        // Where even standard error is gone, nobody is left to be told.
        let _ = err.write_all(self.err.as_bytes());
        match written {
            Ok(()) => self.code,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.code,
            Err(error) => {
                let _ = writeln!(err, "error: the answer could not be written: {error}");
                // The command ran, but its caller cannot know how it went.
                exit::UNKNOWN
            }
        }
    }
}

/// `view` as one line of JSON with its line end.
///
/// # Panics
/// Never for views: they are made of strings, numbers, lists and objects with string keys, and
/// writing those to memory cannot fail.
pub fn json_line<T: Serialize + ?Sized>(view: &T) -> String {
    let mut line = serde_json::to_string(view).expect("a view is plain data");
    line.push('\n');
    line
}

/// A column: its heading and the side on which its cells are aligned.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    name: &'static str,
    right: bool,
}

/// A column of words.
#[must_use]
pub const fn words(name: &'static str) -> Column {
    Column { name, right: false }
}

/// A column of numbers.
#[must_use]
pub const fn numbers(name: &'static str) -> Column {
    Column { name, right: true }
}

/// Rows under headings, each column as wide as its widest cell.
#[derive(Clone, Debug)]
pub struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: [Column; N]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = self.columns.map(|column| column.name.chars().count());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let headings = self.columns.map(|column| column.name.to_owned());
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), column) in row.iter().zip(widths).zip(self.columns) {
                let padded = if column.right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
                line.push_str(&padded);
                line.push_str("  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Lines of a name and what belongs to it, aligned.
#[must_use]
pub fn pairs(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    lines.iter().map(|(name, text)| format!("{name:<width$}  {text}\n")).collect()
}

/// `-` for what is not known or not there.
#[must_use]
pub fn or_dash<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Items with commas between them, `-` for none.
pub fn commas<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

/// A number of bytes with three or four digits and a binary unit.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    let mut unit = 1u64;
    let mut name = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if bytes / unit < 1024 {
            break;
        }
        unit *= 1024;
        name = larger;
    }
    if unit == 1 {
        return format!("{bytes} B");
    }
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([words("zone"), numbers("bytes"), words("addr")]);
        table.row(["düsseldorf".to_owned(), "7".to_owned(), "a".to_owned()]);
        table.row([String::new(), "123456".to_owned(), "bb".to_owned()]);
        assert_eq!(
            table.to_string(),
            "zone         bytes  addr\n\
             düsseldorf       7  a\n\
             \x20           123456  bb\n"
        );
    }

    #[test]
    fn an_empty_table_still_has_headings() {
        assert_eq!(Table::new([numbers("id"), words("home")]).to_string(), "id  home\n");
    }

    #[test]
    fn pairs_align_what_belongs_to_the_names() {
        assert_eq!(
            pairs(&[("key", "a".to_owned()), ("routing key", "b".to_owned())]),
            "key          a\nrouting key  b\n"
        );
    }

    #[test]
    fn bytes_get_the_largest_unit_that_keeps_a_digit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1023.9 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn a_list_is_one_document_or_one_per_item() {
        let table = |items: &[u32]| format!("{} items\n", items.len());
        let printed = |format| Answer::list(format, &[1, 2], table).out;
        assert_eq!(printed(Format::Table), b"2 items\n");
        assert_eq!(printed(Format::Json), b"[1,2]\n");
        assert_eq!(printed(Format::Jsonl), b"1\n2\n");
    }

    #[test]
    fn nothing_is_a_dash() {
        assert_eq!(or_dash(None::<u32>), "-");
        assert_eq!(or_dash(Some(3)), "3");
        assert_eq!(commas(Vec::<u32>::new()), "-");
        assert_eq!(commas([1, 2]), "1, 2");
    }
}

//! The rules for project files that no cargo tool knows.
//!
//! - a `.rs` file has at most 800 lines: a longer one is split by the state that its parts own;
//! - a module (a `.rs` file below a `src` folder) begins with `//!` and says what it is for. Build
//!   scripts, integration tests and generated code are no modules in this sense: the first two lie
//!   beside `src`, the last in the build folder;
//! - some words stay out of every text: notes about work that is left, paths of one machine, and
//!   names that mean something only outside the repository.
//!
//! The rules are a pure function of path and text; only [`findings`] touches the disk. A file that
//! cannot be read as UTF-8 is an error, not a pass.

use std::path::{Path, PathBuf};

use anyhow::Context;

const LINES_MAX: usize = 800;

/// Folders of the workspace root that hold nothing of ours.
const SKIPPED: &[&str] = &[".git", "target"];

/// How the names of files end that people write.
const WRITTEN: &[&str] = &["md", "proto", "rs", "sh", "toml", "txt", "yaml", "yml"];

/// Words that stay out, each with the reason. Spelled in two parts, or this list would find itself.
const BANNED: &[(&str, &str)] = &[
    (concat!("TO", "DO"), LEFT_OVER),
    (concat!("FIX", "ME"), LEFT_OVER),
    (concat!("XX", "X"), LEFT_OVER),
    (concat!("HA", "CK"), LEFT_OVER),
    (concat!("todo", "!("), LEFT_OVER),
    (concat!("unimplemented", "!("), LEFT_OVER),
    (concat!("#[ign", "ore"), "a test that never runs proves nothing"),
    (concat!("/ho", "me/"), ONE_MACHINE),
    (concat!("/ro", "ot/"), ONE_MACHINE),
    (concat!("/wo", "rk/"), ONE_MACHINE),
    (concat!("crates", ".io"), "a registry is named by cargo's configuration, not by the project"),
    (concat!("iss", "ue #"), "a number means nothing without its tracker: tell the reason instead"),
];

const LEFT_OVER: &str = "finish it, or leave it out";
const ONE_MACHINE: &str = "a path of one machine";

/// Checks every file that people write below `root`.
pub fn findings(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut paths = Vec::new();
    collect(root, root, &mut paths)?;
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        found.extend(file(&path, &text));
    }
    Ok(found)
}

/// Adds the written files below `dir` to `paths`, relative to `root`. Follows no symbolic links.
fn collect(root: &Path, dir: &Path, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let listing =
        std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in listing {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let path = entry.path();
        let relative = path.strip_prefix(root).context("a listing left its folder")?;
        let kind =
            entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?;
        if kind.is_dir() {
            if !SKIPPED.iter().any(|skipped| relative == Path::new(skipped)) {
                collect(root, &path, paths)?;
            }
        } else if kind.is_file() && is_written(relative) {
            paths.push(relative.to_path_buf());
        }
    }
    Ok(())
}

fn is_written(path: &Path) -> bool {
    // Scripts of the gate have no extension.
    path.starts_with(".ci")
        || path.extension().is_some_and(|end| WRITTEN.iter().any(|written| end == *written))
}

/// What is wrong with one file.
fn file(path: &Path, text: &str) -> Vec<String> {
    let shown = path.display();
    let mut found = Vec::new();
    if path.extension().is_some_and(|end| end == "rs") {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            found.push(format!("{shown}: {lines} lines, at most {LINES_MAX}"));
        }
        let is_module = path.components().any(|part| part.as_os_str() == "src");
        if is_module && !text.starts_with("//!") {
            found.push(format!("{shown}:1: a module begins with `//!`: what is it for?"));
        }
    }
    for (number, line) in text.lines().enumerate() {
        for (word, reason) in BANNED {
            if has(line, word) {
                found.push(format!("{shown}:{}: `{word}`: {reason}", number + 1));
            }
        }
    }
    found
}

/// Whether `line` holds `word` by itself, not as a part of a longer word.
fn has(line: &str, word: &str) -> bool {
    let is_wordy = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let open_end = word.chars().next_back().is_some_and(is_wordy);
        !(before.is_some_and(is_wordy) || open_end && after.is_some_and(is_wordy))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings_of(path: &str, text: &str) -> usize {
        file(Path::new(path), text).len()
    }

    #[test]
    fn a_module_needs_its_first_words() {
        assert_eq!(findings_of("crates/wal/src/lib.rs", "//! The log.\n"), 0);
        assert_eq!(findings_of("crates/wal/src/lib.rs", "use std::fmt;\n"), 1);
        assert_eq!(findings_of("crates/wal/src/core/tests.rs", ""), 1);
        assert_eq!(findings_of("proto/build.rs", "fn main() {}\n"), 0);
        assert_eq!(findings_of("docs/src/page.md", "No module.\n"), 0);
    }

    #[test]
    fn the_first_line_too_many_is_found() {
        let full = "//! x\n".repeat(LINES_MAX);
        assert_eq!(findings_of("ring/src/lib.rs", &full), 0);
        assert_eq!(findings_of("ring/src/lib.rs", &format!("{full}//! x\n")), 1);
        assert_eq!(findings_of("ring/tests/long.rs", &format!("{full}//! x\n")), 1);
        assert_eq!(findings_of("docs/long.md", &format!("{full}//! x\n")), 0);
    }

    #[test]
    fn every_banned_word_is_found_where_it_stands_alone() {
        for (word, _) in BANNED {
            let found = file(Path::new("a.md"), &format!("fine\nsee {word}1 or {word} here\n"));
            assert!(found.len() == 1 && found[0].starts_with("a.md:2: "), "{word}: {found:?}");
            assert_eq!(findings_of("a.md", &format!("a{word}\n")), 0, "{word}");
        }
    }

    #[test]
    fn only_files_that_people_write_are_read() {
        for (path, written) in [
            ("README.md", true),
            (".ci/run", true),
            ("xtask/src/main.rs", true),
            ("Cargo.toml", true),
            ("Cargo.lock", false),
            ("LICENSE", false),
        ] {
            assert_eq!(is_written(Path::new(path)), written, "{path}");
        }
    }
}

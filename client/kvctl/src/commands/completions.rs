//! `completions`: scripts for shells, made from the definition of the command line. Asks no cluster, and
//! knows no keys, nodes or shards. The scripts complete `kvctl`, not `annulus kvctl`.

use clap_complete::{Shell, generate};

use crate::args::ShellName;
use crate::output::Answer;

/// `kvctl completions`. The same in every output format: it is for the shell to read.
pub fn script(shell: ShellName) -> Answer {
    let shell = match shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut out = Vec::new();
    generate(shell, &mut crate::command(), "kvctl", &mut out);
    Answer { out, ..Answer::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_script_names_every_command() {
        for shell in [ShellName::Bash, ShellName::Zsh, ShellName::Fish] {
            let Answer { out, code, .. } = script(shell);
            let text = String::from_utf8(out).unwrap();
            assert_eq!(code, 0);
            // Whole words: `op` is also a part of `option`.
            let is_apart = |c: char| !c.is_ascii_alphanumeric() && c != '-';
            let words: BTreeSet<&str> = text.split(is_apart).collect();
            for command in crate::command().get_subcommands() {
                assert!(words.contains(command.get_name()), "{shell:?}: {}", command.get_name());
            }
            assert!(words.contains("kvctl") && words.contains("completions"), "{shell:?}");
        }
    }

    #[test]
    fn a_script_knows_options_and_the_commands_below_a_command() {
        for shell in [ShellName::Bash, ShellName::Zsh, ShellName::Fish] {
            let text = String::from_utf8(script(shell).out).unwrap();
            for word in ["consistency", "endpoints", "drain", "jsonl"] {
                assert!(text.contains(word), "{shell:?}: {word}");
            }
        }
    }
}

//! Asking before something is changed.
//!
//! Invariant: what changes the cluster through its manager does so only after `--yes` or after a person said
//! yes at a terminal. Where nobody can be asked, it is refused, as a wrong command line: a script has to say
//! what it wants. A dry run changes nothing and needs no consent.

use std::io::{IsTerminal, Write};

use annulus_client::Error;

use crate::args::{Action, Consent};
use crate::commands::wish::wish;
use crate::errors::exit;
use crate::output::Answer;
use crate::values::read_line;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Go,
    Ask,
    Refuse,
}

fn judge(consent: &Consent, can_ask: bool) -> Verdict {
    if consent.dry_run || consent.yes {
        Verdict::Go
    } else if can_ask {
        Verdict::Ask
    } else {
        Verdict::Refuse
    }
}

/// Whether the command may go on. `terminal`: whether standard output is one; standard input and standard
/// error must be, too, for a question.
///
/// # Errors
/// `BadRequest` when nobody can be asked, or what is wanted cannot be.
pub async fn granted(action: &Action, terminal: bool) -> Result<bool, Error> {
    let (Some(consent), Some(wish)) = (action.consent(), wish(action)?) else { return Ok(true) };
    let can_ask = terminal && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    match judge(consent, can_ask) {
        Verdict::Go => Ok(true),
        Verdict::Refuse => Err(Error::bad_request(
            "yes",
            format!(
                "to {wish} needs --yes where there is no terminal to ask at; --dry-run only tells \
                 what would be decided"
            ),
        )),
        Verdict::Ask => {
            let mut err = std::io::stderr();
            // Whoever does not see the question does not say yes.
            let _ = write!(err, "{wish}? [y/N] ").and_then(|()| err.flush());
            Ok(is_yes(&read_line().await?))
        }
    }
}

fn is_yes(line: &str) -> bool {
    let word = line.trim();
    word.eq_ignore_ascii_case("y") || word.eq_ignore_ascii_case("yes")
}

/// The answer when the person said no.
#[must_use]
pub fn declined() -> Answer {
    Answer { err: "nothing was changed\n".to_owned(), code: exit::NO, ..Answer::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_changed_without_yes_or_a_terminal() {
        for (dry_run, yes, can_ask, expected) in [
            (false, false, false, Verdict::Refuse),
            (false, false, true, Verdict::Ask),
            (false, true, false, Verdict::Go),
            (true, false, false, Verdict::Go),
            (true, false, true, Verdict::Go),
        ] {
            assert_eq!(judge(&Consent { dry_run, yes }, can_ask), expected);
        }
    }

    #[test]
    fn only_yes_is_yes() {
        assert!(is_yes("y\n") && is_yes(" YES \r\n"));
        assert!(!is_yes("") && !is_yes("\n") && !is_yes("yeah\n") && !is_yes("n\n"));
    }
}

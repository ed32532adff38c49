//! `cargo xtask jepsen`: real processes under a nemesis, and what clients saw judged afterwards.
//!
//! Builds the binary with the dev profile and hands over to the harness (`tests/jepsen-style`), which
//! prints the report folder. `cargo xtask load` is its sibling: a closed loop on a release build,
//! figures and no verdict.

use crate::step;

/// Options of `jepsen` as they stand on the line, and what the harness calls them.
const OPTIONS: [(&str, &str); 6] = [
    ("--workload", "--workload"),
    ("--nemesis", "--nemesis"),
    ("--minutes", "--seconds"),
    ("--seed", "--seed"),
    ("--nodes", "--nodes"),
    ("--clients", "--clients"),
];

/// The harness's own words; `None` when the line is not understood. Which workloads and nemeses there are
/// is the harness's to know.
fn words(line: &[&str]) -> Option<Vec<String>> {
    let mut words = vec!["run".to_owned()];
    for pair in line.chunks(2) {
        let [name, value] = pair else { return None };
        let (_, own) = OPTIONS.iter().find(|(known, _)| known == name)?;
        let value = match *name {
            // Halves and tenths of a minute are fine.
            "--minutes" => {
                let minutes = value.parse::<f64>().ok().filter(|minutes| *minutes > 0.0)?;
                format!("{:.0}", minutes * 60.0)
            }
            _ => (*value).to_owned(),
        };
        words.extend([(*own).to_owned(), value]);
    }
    Some(words)
}

/// One run of the harness; `None` when the line is not understood.
pub fn run(line: &[&str]) -> Option<anyhow::Result<()>> {
    let words = words(line)?;
    Some(harness(None, &words))
}

/// A closed loop on a release build.
pub fn load(line: &[&str]) -> anyhow::Result<()> {
    let mut words = vec!["load".to_owned()];
    words.extend(line.iter().map(|word| (*word).to_owned()));
    harness(Some("--release"), &words)
}

fn harness(profile: Option<&str>, words: &[String]) -> anyhow::Result<()> {
    let root = step::root()?;
    let mut build = vec!["build", "--package", "annulus", "--bin", "annulus"];
    build.extend(profile);
    step::run_cargo(&root, &build, &[])?;
    let folder = if profile.is_some() { "release" } else { "debug" };
    let program = root.join("target").join(folder).join("annulus").display().to_string();
    let mut command = vec!["run", "--quiet", "--package", "annulus-harness"];
    command.extend(profile);
    command.push("--");
    command.extend(words.iter().map(String::as_str));
    command.extend(["--program", &program]);
    step::run_cargo(&root, &command, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_become_seconds_and_strangers_are_refused() {
        let line = ["--workload", "bank", "--minutes", "0.5", "--nemesis", "kill,stop"];
        let expected = ["run", "--workload", "bank", "--seconds", "30", "--nemesis", "kill,stop"];
        assert_eq!(words(&line).unwrap(), expected);
        for bad in [&["--minutes"][..], &["--minutes", "-1"], &["--x", "1"]] {
            assert_eq!(words(bad), None, "{bad:?}");
        }
    }
}

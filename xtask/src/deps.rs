//! `cargo xtask deps`: the direction of dependencies, checked against what cargo reports.
//!
//! Three rules, each as data below: which of our packages may use which ([`EDGES`]), which external
//! crates stay inside one package ([`HELD`]), and that openraft is pinned to one exact version
//! ([`PINNED`]). Development dependencies may go anywhere, except to the packages of
//! [`NEVER_USED`]. A package without a row fails, so that adding one is a decision.
//!
//! The checks are pure functions of cargo's metadata and of the text of the root manifest; when
//! cargo does not answer, the step fails.

use std::collections::BTreeSet;
use std::process::Stdio;

use anyhow::Context;
use serde::Deserialize;

use crate::step;

/// What a package may use among ours.
enum May {
    Use(&'static [&'static str]),
    UseAllBut(&'static [&'static str]),
}

impl May {
    fn includes(&self, package: &str) -> bool {
        match self {
            Self::Use(list) => list.contains(&package),
            Self::UseAllBut(list) => !list.contains(&package),
        }
    }
}

/// The table of `docs/architecture.md`.
const EDGES: &[(&str, May)] = &[
    ("annulus-types", May::Use(&[])),
    ("annulus-ring", May::Use(&["annulus-types"])),
    ("annulus-runtime", May::Use(&["annulus-types"])),
    ("annulus-wal", May::Use(&["annulus-types", "annulus-runtime"])),
    ("annulus-engine", May::Use(&["annulus-types", "annulus-runtime"])),
    ("annulus-proto", May::Use(&["annulus-types"])),
    (
        "annulus-raft",
        May::Use(&[
            "annulus-types",
            "annulus-runtime",
            "annulus-wal",
            "annulus-engine",
            "annulus-proto",
        ]),
    ),
    (
        "annulus-client",
        May::Use(&["annulus-types", "annulus-ring", "annulus-runtime", "annulus-proto"]),
    ),
    ("annulus-server", May::Use(ROLE)),
    ("annulus-shard-manager", May::Use(ROLE)),
    ("annulus-harness", May::Use(&["annulus-client", "annulus-runtime", "annulus-types"])),
    (
        "annulus-kvctl",
        May::Use(&["annulus-client", "annulus-proto", "annulus-types", "annulus-runtime"]),
    ),
    ("annulus", May::UseAllBut(&["annulus-xtask", "annulus-sim"])),
    ("annulus-sim", May::UseAllBut(&["annulus", "annulus-kvctl", "annulus-xtask"])),
    ("annulus-xtask", May::Use(&[])),
];

/// What the two roles of a node may use.
const ROLE: &[&str] = &[
    "annulus-types",
    "annulus-ring",
    "annulus-runtime",
    "annulus-proto",
    "annulus-engine",
    "annulus-raft",
];

/// Ends of the graph: nothing depends on them, not even a test.
const NEVER_USED: &[&str] = &["annulus-sim", "annulus-xtask"];

/// Families of external crates, and the one package of ours that may name them.
const HELD: &[(&str, &str)] =
    &[("openraft", "annulus-raft"), ("fjall", "annulus-engine"), ("sled", "annulus-engine")];

/// Pre-releases whose parts ask for each other by caret: without an exact version of every part
/// cargo may combine parts of different releases.
const PINNED: &[&str] = &["openraft", "openraft-macros", "openraft-rt", "openraft-rt-tokio"];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    req: String,
    /// Absent for a normal dependency.
    kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Dev,
    Build,
}

/// Asks cargo and checks.
pub fn run() -> anyhow::Result<()> {
    let root = step::root()?;
    step::timed("dependency edges", || {
        let output = step::cargo(&root, &["metadata", "--format-version", "1", "--no-deps"])
            .stderr(Stdio::inherit())
            .output()
            .context("cargo could not be started")?;
        if !output.status.success() {
            anyhow::bail!("cargo metadata: {}", output.status);
        }
        let metadata: Metadata =
            serde_json::from_slice(&output.stdout).context("cargo's metadata is not understood")?;
        let manifest = std::fs::read_to_string(root.join("Cargo.toml"))
            .context("cannot read the root Cargo.toml")?;
        let mut found = forbidden(&metadata);
        found.extend(unpinned(&manifest));
        step::report(&found)
    })
}

/// Edges that no rule allows.
fn forbidden(metadata: &Metadata) -> Vec<String> {
    let ours: BTreeSet<&str> =
        metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut found = Vec::new();
    for package in &metadata.packages {
        let from = package.name.as_str();
        let row = EDGES.iter().find(|(name, _)| *name == from).map(|(_, may)| may);
        if row.is_none() {
            found.push(format!("{from}: no row in the table of edges; add one in xtask and docs"));
        }
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            if ours.contains(to) {
                let is_dev = dependency.kind == Some(Kind::Dev);
                if NEVER_USED.contains(&to) {
                    found.push(format!("{from} -> {to}: nothing may depend on {to}"));
                } else if !is_dev && row.is_some_and(|may| !may.includes(to)) {
                    found.push(format!("{from} -> {to}: not in the table of edges"));
                }
            }
            for (family, owner) in HELD {
                if belongs(to, family) && from != *owner {
                    found.push(format!("{from} -> {to}: only {owner} may name {family}"));
                }
            }
            if belongs(to, "openraft") && !dependency.req.starts_with('=') {
                found.push(format!("{from} -> {to}: `{}` is not an exact version", dependency.req));
            }
        }
    }
    found
}

/// Whether `name` is the crate `family` or one of its parts, `family-part`.
fn belongs(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Crates of [`PINNED`] that the root manifest does not pin, one line each in
/// `[workspace.dependencies]`.
fn unpinned(manifest: &str) -> Vec<String> {
    let table: Vec<(&str, &str)> = manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let mut found = Vec::new();
    for pinned in PINNED {
        let version = table
            .iter()
            .find(|(name, _)| name == pinned)
            .and_then(|(_, value)| version_of(value))
            .unwrap_or("nothing");
        if !version.starts_with('=') {
            found.push(format!("Cargo.toml: {pinned} wants `=` and a version, has {version}"));
        }
    }
    found
}

/// The version in `"1"` or in `{ version = "1", … }`.
fn version_of(value: &str) -> Option<&str> {
    let text = if value.starts_with('{') { value.split_once("version")?.1 } else { value };
    text.split('"').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cargo's answer for one package `from` with one dependency, in a workspace that has all rows.
    fn with_edge(from: &str, to: &str, kind: &str, req: &str) -> Metadata {
        let packages: Vec<String> = EDGES
            .iter()
            .map(|(name, _)| {
                let edge =
                    format!(r#"{{"name":"{to}","source":null,"req":"{req}","kind":{kind}}}"#);
                let edges = if *name == from { edge } else { String::new() };
                format!(r#"{{"name":"{name}","version":"0.1.0","dependencies":[{edges}]}}"#)
            })
            .collect();
        let text = format!(r#"{{"packages":[{}],"version":1}}"#, packages.join(","));
        serde_json::from_str(&text).unwrap()
    }

    const NORMAL: &str = "null";
    const DEV: &str = r#""dev""#;
    const BUILD: &str = r#""build""#;

    #[test]
    fn a_forbidden_edge_is_found() {
        for (from, to, kind) in [
            ("annulus-types", "annulus-ring", NORMAL),
            ("annulus-ring", "annulus-runtime", NORMAL),
            ("annulus-wal", "annulus-engine", NORMAL),
            ("annulus-client", "annulus-raft", NORMAL),
            ("annulus-proto", "annulus-runtime", BUILD),
            ("annulus-kvctl", "annulus-shard-manager", NORMAL),
            ("annulus-xtask", "annulus-types", NORMAL),
            ("annulus", "annulus-xtask", NORMAL),
            ("annulus-server", "annulus-sim", DEV),
            ("annulus-raft", "annulus-xtask", DEV),
        ] {
            let found = forbidden(&with_edge(from, to, kind, "*"));
            assert_eq!(found.len(), 1, "{from} -> {to} ({kind}): {found:?}");
            assert!(found[0].starts_with(&format!("{from} -> {to}: ")), "{found:?}");
        }
    }

    #[test]
    fn an_allowed_edge_is_not() {
        for (from, to, kind) in [
            ("annulus-ring", "annulus-types", NORMAL),
            ("annulus-raft", "annulus-wal", NORMAL),
            ("annulus-proto", "annulus-types", BUILD),
            ("annulus", "annulus-harness", NORMAL),
            ("annulus-sim", "annulus-server", NORMAL),
            ("annulus-ring", "annulus-runtime", DEV),
            ("annulus-server", "tonic", NORMAL),
        ] {
            let found = forbidden(&with_edge(from, to, kind, "*"));
            assert_eq!(found, Vec::<String>::new(), "{from} -> {to} ({kind})");
        }
    }

    #[test]
    fn a_package_without_a_row_is_found() {
        let text = r#"{"packages":[{"name":"annulus-new","dependencies":[]}]}"#;
        let found = forbidden(&serde_json::from_str(text).unwrap());
        assert!(found.len() == 1 && found[0].starts_with("annulus-new: no row"), "{found:?}");
    }

    #[test]
    fn external_crates_stay_where_they_are_held() {
        for (from, to, req, findings) in [
            ("annulus-raft", "openraft", "=0.10.0-alpha.37", 0),
            ("annulus-raft", "openraft-rt", "^0.10.0-alpha.37", 1),
            ("annulus-server", "openraft", "=0.10.0-alpha.37", 1),
            ("annulus-server", "openraft-rt-tokio", "^0.10.0-alpha.37", 2),
            ("annulus-engine", "fjall", "^3.1", 0),
            ("annulus-raft", "fjall", "^3.1", 1),
            ("annulus", "sled", "^0.34.7", 1),
            ("annulus", "sledge", "^1", 0),
        ] {
            for kind in [NORMAL, DEV, BUILD] {
                let found = forbidden(&with_edge(from, to, kind, req));
                assert_eq!(found.len(), findings, "{from} -> {to} ({kind}): {found:?}");
            }
        }
    }

    #[test]
    fn a_version_that_is_not_exact_is_found() {
        let pinned = r#"
            [workspace.dependencies]
            openraft = { version = "=0.10.0-alpha.37", default-features = false }
            openraft-macros = "=0.10.0-alpha.37"
            openraft-rt = "=0.10.0-alpha.37"
            openraft-rt-tokio = "=0.10.0-alpha.37"

            [profile.dev]
            openraft = "1"
        "#;
        assert_eq!(unpinned(pinned), Vec::<String>::new());
        for (exact, loose, name) in [
            (r#""=0.10.0-alpha.37", default"#, r#""0.10.0-alpha.37", default"#, "openraft "),
            (r#"rt = "="#, r#"rt = ""#, "openraft-rt "),
            ("openraft-macros =", "other =", "openraft-macros "),
            (r#"version = "=0.10.0-alpha.37", "#, "", "openraft "),
        ] {
            let found = unpinned(&pinned.replacen(exact, loose, 1));
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert!(found[0].starts_with(&format!("Cargo.toml: {name}")), "{found:?}");
        }
    }
}

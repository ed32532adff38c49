//! The list of all settings, made from the declarations, and the reference for users made from it.
//!
//! Owns how a setting is named in the environment. Does not know values other than defaults.
//!
//! Invariant: the list has every key of the serialised default, and no other.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::{Config, Flags, Timing, Wal};

/// A setting, or a table of settings.
pub(super) struct Setting {
    /// Its key in the file, below the keys of its tables.
    pub(super) path: Vec<String>,
    /// Its doc comment.
    text: &'static str,
}

impl Setting {
    fn new(fields: &[&str], text: &'static str) -> Self {
        let path = fields.iter().map(|field| field.replace('_', "-")).collect();
        Self { path, text: text.trim() }
    }

    /// As the file spells it, `timing.lease`.
    pub(super) fn name(&self) -> String {
        self.path.join(".")
    }

    /// The environment variable for it.
    pub(super) fn variable(&self) -> String {
        format!("ANNULUS_{}", self.name().replace(['-', '.'], "_").to_uppercase())
    }

    /// Its value in [`defaults`].
    pub(super) fn default_in<'a>(&self, defaults: &'a Table) -> Option<&'a Value> {
        let (last, above) = self.path.split_last()?;
        let mut table = defaults;
        for key in above {
            table = table.get(key)?.as_table()?;
        }
        table.get(last)
    }
}

/// All of them, a table before what is in it.
pub(super) fn settings() -> Vec<Setting> {
    let mut all = Vec::new();
    for &(field, text) in Config::FIELDS {
        all.push(Setting::new(&[field], text));
        let below: &'static [(&'static str, &'static str)] = match field {
            "timing" => Timing::FIELDS,
            "wal" => Wal::FIELDS,
            _ => &[],
        };
        all.extend(below.iter().map(|&(name, text)| Setting::new(&[field, name], text)));
    }
    all
}

/// The default of everything.
pub(super) fn defaults() -> Table {
    Table::try_from(Config::default()).expect("every setting has a TOML form")
}

/// See [`Config::docs`].
pub(super) fn docs() -> String {
    let defaults = defaults();
    // A default that is refused means that there is none.
    let refused = Config::default().validate().err();
    let required: BTreeSet<String> = refused
        .into_iter()
        .flat_map(|errors| errors.problems)
        .map(|problem| problem.setting)
        .collect();
    let command = <Flags as clap::Args>::augment_args(clap::Command::new("annulus"));
    let flags: BTreeSet<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();

    let mut out = String::from(
        "| setting | default | flag | variable | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for setting in settings() {
        let name = setting.name();
        let flag =
            if flags.contains(name.as_str()) { format!("`--{name}`") } else { String::new() };
        let row = match setting.default_in(&defaults) {
            Some(Value::Table(_)) | None => format!("| `[{name}]` | | | | {} |", setting.text),
            Some(default) => {
                let default = if required.contains(&name) {
                    "required".to_owned()
                } else {
                    format!("`{default}`")
                };
                let variable = setting.variable();
                format!("| `{name}` | {default} | {flag} | `{variable}` | {} |", setting.text)
            }
        };
        out.push_str(&row);
        out.push('\n');
    }
    out
}

//! The configuration of a node: its settings, where their values come from, and what they may be.
//!
//! Owns the order default < TOML file < environment < flags, the limits of single values and of
//! values together, and the texts that `annulus config print` and `annulus config docs` show. Does
//! not act on any setting: who listens or opens a folder finds out there whether it can be done.
//! No setting is read again while the node runs.
//!
//! A setting is declared once, with its type, its default and its doc comment, which is the
//! documentation for users: [`Config::docs`] is made from it. The default stands in a column of its
//! own there and is not repeated in the text.
//!
//! The file is the only thing that is refused for names nobody knows. Variables are looked up by
//! name and others that begin with `ANNULUS_` are passed over: other programs own some, and an
//! orchestrator makes its own up for a service that is called annulus.
//!
//! On failure everything that is wrong is reported, not the first thing: [`ConfigErrors`].

mod checks;
mod settings;
mod sources;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use annulus_engine::EngineKind;
use serde::{Deserialize, Serialize};
use toml::Table;

pub use self::units::{BadText, ByteSize, Duration, Weight};

/// Declares a table of settings: a struct with its defaults, and the texts for its documentation.
macro_rules! settings {
    (
        $(#[$about:meta])*
        $name:ident {
            $(
                $(#[doc = $text:literal])+
                $(#[serde($($serde:tt)+)])?
                $field:ident: $type:ty = $default:expr,
            )+
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name {
            $(
                $(#[doc = $text])+
                $(#[serde($($serde)+)])?
                pub $field: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            /// The fields in their order, each with its doc comment.
            const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), concat!($($text),+)),)+];
        }
    };
}

settings! {
    /// All settings of a node. A value that was not made by [`Config::load`] may break limits:
    /// [`Config::validate`] tells.
    Config {
        /// Number of this node, a whole number from 1 to 4294967295. No other node of the cluster
        /// ever has the same one, not even after this node is gone.
        node_id: u32 = 0,
        /// Folder of everything that the node stores. One node at a time uses it.
        #[serde(serialize_with = "units::lossy_path")]
        data_dir: PathBuf = PathBuf::new(),
        /// Where clients connect: an IP address with its port. Other addresses than loopback need
        /// `insecure`.
        listen: SocketAddr = loopback(7400),
        /// Where other nodes connect: an IP address with its port. Other addresses than loopback
        /// need `insecure`.
        peer_listen: SocketAddr = loopback(7401),
        /// Where health checks, metrics and the console are served: an IP address with its port.
        /// Other addresses than loopback need `insecure`.
        http_listen: SocketAddr = loopback(7402),
        /// The address that clients are told to connect to, `host:port`, where it is another one
        /// than `listen`: behind a proxy, or when the node listens on all addresses. Empty for the
        /// one listened on.
        advertise: String = String::new(),
        /// The address that other nodes are told to connect to, `host:port`, where it is another one
        /// than `peer-listen`. Empty for the one listened on.
        peer_advertise: String = String::new(),
        /// Peer addresses, `host:port`, of nodes by which this one finds its cluster.
        join: Vec<String> = Vec::new(),
        /// What the node is for: `storage` holds data, `manager` takes part in managing the
        /// cluster. At least one.
        roles: Vec<Role> = vec![Role::Storage, Role::Manager],
        /// Failure domain: the copies of a shard are spread over zones. At most 64 bytes without
        /// commas, white space and control characters; empty for none.
        zone: String = String::new(),
        /// Share of the data in proportion to other nodes: a decimal with at most two digits, from
        /// 0.01 to 100.0.
        weight: Weight = Weight(100),
        /// Storage engine: `fjall`, `sled` or `memory`, which is for tests.
        #[serde(with = "units::text")]
        engine: EngineKind = EngineKind::Fjall,
        /// How a line of the log on standard error looks: `text` or `json`.
        log_format: LogFormat = LogFormat::Text,
        /// Lets the node listen on addresses that are not loopback, although nothing is encrypted
        /// and nobody has to prove who they are. Logged at every start.
        insecure: bool = false,
        /// Delays every batch of entries that this node applies as a leader, at random by up to so
        /// many milliseconds, from 0 to 10000: to try reads on a leader that is behind its
        /// followers. All writes get slower. Logged at every start.
        unsafe_slow_apply_ms: u64 = 0,
        /// Times that all nodes of a cluster have in common.
        timing: Timing = Timing::default(),
        /// The log that all replicas of the node share.
        wal: Wal = Wal::default(),
    }
}

settings! {
    /// The table `timing`.
    Timing {
        /// Between heartbeats of a leader: a time in ms, s or m, at least 1ms, at most a third of
        /// `timing.election-min`.
        #[serde(with = "units::text")]
        heartbeat: Duration = Duration::from_millis(100),
        /// Shortest election timeout: a time in ms, s or m, at least three times
        /// `timing.heartbeat`, below `timing.lease`.
        #[serde(with = "units::text")]
        election_min: Duration = Duration::from_millis(400),
        /// Longest election timeout, and how long a leader is trusted: a time in ms, s or m, above
        /// `timing.election-min`, at most 1m.
        #[serde(with = "units::text")]
        lease: Duration = Duration::from_millis(600),
        /// Between pings of another node, which is suspected after three misses: a time in ms, s or
        /// m, from 1ms to 1m.
        #[serde(with = "units::text")]
        ping: Duration = Duration::from_millis(100),
    }
}

settings! {
    /// The table `wal`.
    Wal {
        /// Length of one file of the log: a size in B, KiB, MiB or GiB, from 1MiB to 128MiB,
        /// rounded up to a multiple of 4KiB.
        #[serde(with = "units::text")]
        segment_bytes: ByteSize = ByteSize(16 << 20),
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Holds data.
    Storage,
    /// Takes part in managing the cluster.
    Manager,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

// No documentation of the struct itself: clap would print it as the help of the command around it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// TOML file with settings; ANNULUS_* variables and flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Number of this node, from 1
    #[arg(long, value_name = "N")]
    pub node_id: Option<u32>,
    /// Folder of everything that the node stores
    #[arg(long, value_name = "D")]
    pub data_dir: Option<PathBuf>,
    /// Where clients connect
    #[arg(long, value_name = "A")]
    pub listen: Option<SocketAddr>,
    /// Where other nodes connect
    #[arg(long, value_name = "A")]
    pub peer_listen: Option<SocketAddr>,
    /// Where health checks, metrics and the console are served
    #[arg(long, value_name = "A")]
    pub http_listen: Option<SocketAddr>,
    /// Where clients are told to connect, host:port, if not where the node listens
    #[arg(long, value_name = "A")]
    pub advertise: Option<String>,
    /// Where other nodes are told to connect, host:port, if not where the node listens
    #[arg(long, value_name = "A")]
    pub peer_advertise: Option<String>,
    /// Peer addresses of nodes by which this one finds its cluster, host:port
    #[arg(long, value_name = "A,…", value_delimiter = ',')]
    pub join: Option<Vec<String>>,
    /// What the node is for
    #[arg(long, value_name = "R,…", value_delimiter = ',', value_enum)]
    pub roles: Option<Vec<Role>>,
    /// Failure domain
    #[arg(long, value_name = "Z")]
    pub zone: Option<String>,
    /// Share of the data in proportion to other nodes, as in 1.0
    #[arg(long, value_name = "W")]
    pub weight: Option<Weight>,
    /// Storage engine: fjall, sled or memory
    #[arg(long, value_name = "E")]
    pub engine: Option<EngineKind>,
    /// How a line of the log looks
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Lets the node listen on other addresses than loopback, unencrypted and open to everybody
    #[arg(long)]
    pub insecure: bool,
    /// Delays what this node applies as a leader at random by up to so many ms; for tests
    #[arg(long, value_name = "MS")]
    pub unsafe_slow_apply_ms: Option<u64>,
}

impl Flags {
    fn apply(self, config: &mut Config) {
        fn set<T>(field: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *field = value;
            }
        }
        // Taken apart as a whole, so that no flag can be forgotten.
        let Self {
            config: _,
            node_id,
            data_dir,
            listen,
            peer_listen,
            http_listen,
            advertise,
            peer_advertise,
            join,
            roles,
            zone,
            weight,
            engine,
            log_format,
            insecure,
            unsafe_slow_apply_ms,
        } = self;
        set(&mut config.node_id, node_id);
        set(&mut config.data_dir, data_dir);
        set(&mut config.listen, listen);
        set(&mut config.peer_listen, peer_listen);
        set(&mut config.http_listen, http_listen);
        set(&mut config.advertise, advertise);
        set(&mut config.peer_advertise, peer_advertise);
        set(&mut config.join, join);
        set(&mut config.roles, roles);
        set(&mut config.zone, zone);
        set(&mut config.weight, weight);
        set(&mut config.engine, engine);
        set(&mut config.log_format, log_format);
        set(&mut config.insecure, insecure.then_some(true));
        set(&mut config.unsafe_slow_apply_ms, unsafe_slow_apply_ms);
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct Problem {
    /// The setting as it is spelled in the file, `timing.lease`, or the file itself.
    pub setting: String,
    /// What is wrong, with the limit.
    pub reason: String,
}

/// Everything that is wrong with a configuration; at least one thing. Shown as one line for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct ConfigErrors {
    /// In no order that means anything.
    pub problems: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl Config {
    /// The settings of a node, checked: what `flags` say, else the environment, else the file, else
    /// the default. The file is `file`, else the one that `--config` or `ANNULUS_CONFIG` names; it
    /// may be missing altogether only when none is named.
    ///
    /// # Errors
    /// All problems at once: values that cannot be understood, each named with its place, and
    /// limits that the rest breaks. The limits are not looked at when the file could not be read.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Flags,
    ) -> Result<Self, ConfigErrors> {
        let env: BTreeMap<String, String> = env.collect();
        let named = env.get("ANNULUS_CONFIG").map(Path::new);
        let mut problems = Vec::new();
        let mut given = Vec::new();
        if let Some(path) = file.or(flags.config.as_deref()).or(named) {
            match sources::from_file(path) {
                Ok(all) => given = all,
                Err(problem) => problems.push(problem),
            }
        }
        let file_was_read = problems.is_empty();
        given.extend(sources::from_env(&env));

        // Each value is first understood alone, so that all that are wrong can be named.
        let mut merged = Table::new();
        for one in given {
            match one.understood() {
                Ok(()) => sources::put(&mut merged, &one.path, one.value),
                Err(problem) => problems.push(problem),
            }
        }
        let understood: Result<Self, toml::de::Error> = merged.try_into();
        let mut config = match understood {
            Ok(config) => config,
            Err(error) => {
                let reason = error.message().to_owned();
                problems.push(Problem { setting: "configuration".to_owned(), reason });
                return Err(ConfigErrors { problems });
            }
        };
        flags.apply(&mut config);

        if file_was_read && let Err(broken) = config.validate() {
            // What was not understood has its default now, and complaints about that mislead.
            let named: BTreeSet<String> =
                problems.iter().map(|problem| problem.setting.clone()).collect();
            let others = broken.problems.into_iter();
            problems.extend(others.filter(|problem| !named.contains(&problem.setting)));
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigErrors { problems }) }
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// All limits that do not hold, each with the setting that breaks it.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        let problems = checks::problems(self);
        if problems.is_empty() { Ok(()) } else { Err(ConfigErrors { problems }) }
    }

    /// The whole configuration as a TOML file that [`Config::load`] reads back.
    ///
    /// # Panics
    /// Never: every setting has a TOML form.
    #[must_use]
    pub fn print(&self) -> String {
        toml::to_string(self).expect("every setting has a TOML form")
    }

    /// A Markdown table of all settings: name, default, flag, variable, meaning.
    #[must_use]
    pub fn docs() -> String {
        settings::docs()
    }

    /// The times, as the Raft host takes them.
    #[must_use]
    pub fn timing(&self) -> annulus_raft::Timing {
        let Timing { heartbeat, election_min, lease, ping } = &self.timing;
        annulus_raft::Timing {
            heartbeat: heartbeat.get(),
            election_min: election_min.get(),
            lease: lease.get(),
            ping: ping.get(),
            // The rest is no setting: nothing that nodes must agree on depends on it.
            ..annulus_raft::Timing::default()
        }
    }

    /// The engine.
    #[must_use]
    pub fn engine_kind(&self) -> EngineKind {
        self.engine
    }

    /// The settings of the log, as it takes them.
    #[must_use]
    pub fn wal_options(&self) -> annulus_wal::Options {
        let segment_bytes = self.wal.segment_bytes.0;
        annulus_wal::Options { segment_bytes, ..annulus_wal::Options::default() }
    }

    /// The weight in hundredths.
    #[must_use]
    pub fn weight_hundredths(&self) -> u32 {
        self.weight.0
    }

    /// Whether the node holds data.
    #[must_use]
    pub fn has_storage(&self) -> bool {
        self.roles.contains(&Role::Storage)
    }

    /// Whether the node takes part in managing the cluster.
    #[must_use]
    pub fn has_manager(&self) -> bool {
        self.roles.contains(&Role::Manager)
    }
}

#[cfg(test)]
mod tests;

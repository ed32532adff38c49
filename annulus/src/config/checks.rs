//! The limits of single settings and of settings together.
//!
//! Does not look at the machine: whether an address or a folder can be used shows when it is used.
//!
//! Invariant: settings without problems satisfy the Raft host's own check of its times.
//!
//! On failure all limits that do not hold are told, each with the setting to change.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use super::units::{ByteSize, Duration, Weight};
use super::{Config, Problem, Timing, Wal};

/// Longest zone, bytes.
const ZONE_BYTES_LIMIT: usize = 64;
/// Longest host name that DNS knows, bytes.
const HOST_BYTES_LIMIT: usize = 253;
/// The whole range keeps virtual nodes per node between 1 and 6400.
const WEIGHTS: RangeInclusive<Weight> = Weight(1)..=Weight(10_000);
/// A lease beyond the longest deadline of a request would outlive whatever waits for it.
const TIMES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(60_000);
/// More would outlive the deadlines of most requests, and show nothing that less does not.
const SLOW_APPLIES_MS: RangeInclusive<u64> = 0..=10_000;
/// Below this range an entry of full size (W9) would always need a segment of its own; above it the
/// log's budget of 512 MiB would be less than four segments.
const SEGMENTS: RangeInclusive<ByteSize> = ByteSize(1 << 20)..=ByteSize(128 << 20);

/// Everything that does not hold.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut checks = Checks(Vec::new());
    config.check_node(&mut checks);
    config.check_addresses(&mut checks);
    config.timing.check(&mut checks);
    config.wal.check(&mut checks);
    checks.0
}

/// Gathers what does not hold.
struct Checks(Vec<Problem>);

impl Checks {
    fn that(&mut self, holds: bool, setting: &str, reason: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Problem { setting: setting.to_owned(), reason: reason() });
        }
    }

    fn within<T>(&mut self, setting: &str, value: T, limits: &RangeInclusive<T>)
    where
        T: PartialOrd + fmt::Display,
    {
        self.that(limits.contains(&value), setting, || {
            format!("{value} is not within {} and {}", limits.start(), limits.end())
        });
    }
}

impl Config {
    fn check_node(&self, checks: &mut Checks) {
        let required = || format!("must be given, from 1 to {}", u32::MAX);
        checks.that(self.node_id > 0, "node-id", required);

        let folder = self.data_dir.as_os_str();
        checks.that(!folder.is_empty(), "data-dir", || "must be given".to_owned());
        checks.that(folder.to_str().is_some(), "data-dir", || {
            format!("{} is not UTF-8", self.data_dir.display())
        });

        checks.that(!self.roles.is_empty(), "roles", || {
            "at least one of storage and manager is needed".to_owned()
        });
        for (at, role) in self.roles.iter().enumerate() {
            let again = self.roles.iter().take(at).any(|before| before == role);
            checks.that(!again, "roles", || format!("{role:?} stands there twice").to_lowercase());
        }

        let zone = &self.zone;
        checks.that(zone.len() <= ZONE_BYTES_LIMIT, "zone", || {
            format!("{} bytes are too many, at most {ZONE_BYTES_LIMIT} may be", zone.len())
        });
        let plain = |c: char| c != ',' && !c.is_whitespace() && !c.is_control();
        checks.that(zone.chars().all(plain), "zone", || {
            format!("{zone:?} has a comma, white space or a control character")
        });
        checks.within("weight", self.weight, &WEIGHTS);
        checks.within("unsafe-slow-apply-ms", self.unsafe_slow_apply_ms, &SLOW_APPLIES_MS);
    }

    fn check_addresses(&self, checks: &mut Checks) {
        let addresses = [
            ("listen", self.listen),
            ("peer-listen", self.peer_listen),
            ("http-listen", self.http_listen),
        ];
        for (at, (name, address)) in addresses.into_iter().enumerate() {
            let local = address.ip().to_canonical().is_loopback();
            checks.that(local || self.insecure, name, || {
                format!(
                    "{address} is not loopback and there is no encryption: that needs insecure = \
                     true or --insecure"
                )
            });
            for (other, taken) in addresses.into_iter().take(at) {
                checks.that(!clash(address, taken), name, || {
                    format!("{address} is taken by {other} = {taken}")
                });
            }
        }
        for address in &self.join {
            checks.that(is_host_port(address), "join", || no_host_port(address));
        }
        let told = [("advertise", &self.advertise), ("peer-advertise", &self.peer_advertise)];
        for (name, address) in told.into_iter().filter(|(_, address)| !address.is_empty()) {
            checks.that(is_host_port(address), name, || no_host_port(address));
            let everywhere: Result<SocketAddr, _> = address.parse();
            let is_one = !everywhere.is_ok_and(|address| address.ip().is_unspecified());
            checks.that(is_one, name, || {
                format!("{address} stands for all addresses, nobody can connect to it")
            });
        }
    }
}

impl Timing {
    /// The inequalities that the Raft host insists on, and an upper end for all of them: the lease
    /// bounds heartbeat and election timeout.
    fn check(&self, checks: &mut Checks) {
        let Self { heartbeat, election_min, lease, ping } = *self;
        let least = *TIMES.start();
        checks.that(heartbeat >= least, "timing.heartbeat", || {
            format!("{heartbeat} is too short, at least {least} is needed")
        });
        checks.that(
            heartbeat.get().saturating_mul(3) <= election_min.get(),
            "timing.election-min",
            || format!("{election_min} is less than three times timing.heartbeat = {heartbeat}"),
        );
        checks.that(election_min < lease, "timing.lease", || {
            format!("{lease} is not above timing.election-min = {election_min}")
        });
        checks.within("timing.lease", lease, &TIMES);
        checks.within("timing.ping", ping, &TIMES);
    }
}

impl Wal {
    fn check(&self, checks: &mut Checks) {
        checks.within("wal.segment-bytes", self.segment_bytes, &SEGMENTS);
    }
}

/// Whether two listeners would be in each other's way. Port 0 asks for any free one.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || everywhere)
}

fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    // A sign would be parsed too.
    let port_fits = port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port > 0);
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let host_fits = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => (1..=HOST_BYTES_LIMIT).contains(&host.len()) && host.bytes().all(named),
    };
    port_fits && host_fits
}

fn no_host_port(text: &str) -> String {
    format!(
        "{text:?} is not host:port, a name of at most {HOST_BYTES_LIMIT} letters, digits, dots, \
         dashes and underscores or an IP address (IPv6 in brackets) with a port from 1 to {}",
        u16::MAX
    )
}

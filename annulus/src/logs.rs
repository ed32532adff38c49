//! Logs to stderr, as text or JSON lines, with what is too talkative turned down.

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogFormat;

/// Begins to log. A second call changes nothing.
pub fn begin(format: LogFormat) {
    // openraft logs each replayed chunk and each lost heartbeat.
    let targets = Targets::new()
        .with_default(Level::INFO)
        .with_target("openraft", Level::ERROR)
        .with_target("fjall", Level::WARN)
        .with_target("lsm_tree", Level::WARN)
        .with_target("sled", Level::WARN)
        .with_target("h2", Level::WARN);
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let begun = match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
    // Another subscriber is in place already: a test's own.
    drop(begun);
}

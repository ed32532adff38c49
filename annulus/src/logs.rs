//! Logs to stderr, as text or JSON lines, each with its node; what is too talkative is turned down.

use std::fmt;

use annulus_types::NodeId;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogFormat;

/// Begins to log. A second call changes nothing.
pub fn begin(format: LogFormat, node: NodeId) {
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
        LogFormat::Text => {
            let lines = OfNode { node, lines: Format::default() };
            registry.with(layer.event_format(lines)).try_init()
        }
        LogFormat::Json => {
            let lines = OfNode { node, lines: Format::default().json() };
            registry.with(layer.json().event_format(lines)).try_init()
        }
    };
    // Another subscriber is in place already: a test's own.
    drop(begun);
}

/// Lines of which each names the node: also those of tasks and threads that libraries start, which
/// no span reaches.
struct OfNode<F> {
    node: NodeId,
    lines: F,
}

/// A line that begins with a brace is JSON; a text begins with its time.
fn with_node(line: &str, node: NodeId) -> String {
    if let Some(rest) = line.strip_prefix('{') {
        return format!("{{\"node\":{node},{rest}");
    }
    match line.split_once(' ') {
        Some((time, rest)) => format!("{time} node={node} {rest}"),
        None => format!("node={node} {line}"),
    }
}

impl<S, N, F> FormatEvent<S, N> for OfNode<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&with_node(&line, self.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_line_name_the_node() {
        assert_eq!(
            with_node("{\"level\":\"INFO\"}\n", NodeId(3)),
            "{\"node\":3,\"level\":\"INFO\"}\n"
        );
        assert_eq!(
            with_node("2026-01-01T00:00:00Z  INFO annulus: stopping\n", NodeId(3)),
            "2026-01-01T00:00:00Z node=3  INFO annulus: stopping\n"
        );
    }
}

//! The HTTP port: `/healthz` (alive), `/readyz` (may serve), `/metrics` (Prometheus text).
//!
//! Alive means that the process answers. Ready means that it belongs to a cluster, knows its routing
//! table, and every replica that it holds is running.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use annulus_runtime::{Listener, OnEnd};
use annulus_types::Role;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::Node;

/// Serves until the node stops.
pub(super) async fn run(node: Arc<Node>, listener: Arc<dyn Listener>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = node.env.tasks.stop_requested() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let served = Arc::clone(&node);
        node.env.tasks.spawn("http connection", OnEnd::Ignore, async move {
            let service = service_fn(move |request| {
                let page = page(&served, &request);
                async move { Ok::<_, Infallible>(page) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an http connection ended");
            }
        });
    }
}

fn page(node: &Node, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "text/plain", "alive\n".to_owned()),
        "/readyz" => match not_ready(node) {
            None => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n")),
        },
        "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4", metrics(node)),
        _ => (StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

fn not_ready(node: &Node) -> Option<String> {
    let Some(host) = node.host() else { return Some("belongs to no cluster yet".to_owned()) };
    if node.tables.current().is_none() {
        return Some("knows no routing table yet".to_owned());
    }
    host.groups().iter().find_map(|group| {
        let reason = group.status().halted?;
        Some(format!("group {}: {reason}", group.id()))
    })
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.value(name, "", value);
    }
}

fn metrics(node: &Node) -> String {
    let mut text = Text(String::new());
    let status = node.own_status();
    text.single("annulus_engine_bytes", "gauge", "Bytes of the engine.", status.engine_bytes);
    text.single(
        "annulus_disk_free_bytes",
        "gauge",
        "Free bytes of the disk.",
        status.disk_free_bytes,
    );
    text.single("annulus_wal_bytes", "gauge", "Bytes of the shared log.", status.wal_bytes);
    let Some(host) = node.host() else { return text.0 };
    let wal = host.wal().stats();
    text.single("annulus_wal_syncs_total", "counter", "fdatasync calls of the log.", wal.syncs);
    text.single("annulus_wal_batches_total", "counter", "Batches written to the log.", wal.batches);
    text.single("annulus_wal_records_total", "counter", "Records written to the log.", wal.records);
    text.single(
        "annulus_wal_written_bytes_total",
        "counter",
        "Bytes written to the log.",
        wal.bytes_written,
    );
    let moved = host.move_traffic();
    for (name, help, value) in [
        ("annulus_move_state_sent_bytes_total", "State files sent to replicas.", moved.state_sent),
        ("annulus_move_log_sent_bytes_total", "Append frames sent to learners.", moved.log_sent),
        (
            "annulus_move_state_needed_bytes_total",
            "Rows of the states with which replicas here came to their votes.",
            moved.state_needed,
        ),
        (
            "annulus_move_log_needed_bytes_total",
            "Log entries that these replicas took in before their votes.",
            moved.log_needed,
        ),
    ] {
        text.single(name, "counter", help, value);
    }
    let groups: Vec<_> = host.groups().iter().map(|group| group.status()).collect();
    let metric = |text: &mut Text, name: &str, help: &str, of: &dyn Fn(usize) -> u64| {
        text.head(name, "gauge", help);
        for (position, group) in groups.iter().enumerate() {
            let labels = format!("{{group=\"{}\",replica=\"{}\"}}", group.group, group.replica);
            text.value(name, &labels, of(position));
        }
    };
    metric(&mut text, "annulus_group_term", "Raft term.", &|n| groups[n].term);
    metric(&mut text, "annulus_group_applied_index", "Last applied index.", &|n| {
        groups[n].applied_index
    });
    metric(&mut text, "annulus_group_last_index", "Last log index.", &|n| groups[n].last_index);
    metric(&mut text, "annulus_group_leads", "Whether this replica leads.", &|n| {
        u64::from(groups[n].role == Role::Leader)
    });
    metric(&mut text, "annulus_group_gate_open", "Whether its gate is open.", &|n| {
        u64::from(groups[n].gate_open)
    });
    text.0
}

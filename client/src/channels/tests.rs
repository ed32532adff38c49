//! What a failed call proves. The "nodes" are byte pipes that nobody serves: they accept and stay
//! silent, or break.

use std::net::SocketAddr;

use annulus_proto::v1;
use annulus_proto::v1::kv_client::KvClient;
use annulus_runtime::{Listener, Random, RealDisk, Tasks};
use annulus_types::MayHaveApplied;
use tokio::io::DuplexStream;

use super::*;

#[derive(Clone, Copy, Debug, Default)]
enum Manner {
    #[default]
    Accept,
    Refuse,
    Hang,
}

/// Keeps the far ends of all connections.
#[derive(Debug, Default)]
struct Pipes {
    manner: Mutex<Manner>,
    made: Mutex<usize>,
    far_ends: Mutex<Vec<DuplexStream>>,
}

impl Network for Pipes {
    fn listen(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let manner = *self.manner.lock();
            match manner {
                Manner::Accept => {
                    let (near, far) = tokio::io::duplex(64 * 1024);
                    *self.made.lock() += 1;
                    self.far_ends.lock().push(far);
                    Ok(Box::new(near) as Stream)
                }
                Manner::Refuse => Err(io::ErrorKind::ConnectionRefused.into()),
                Manner::Hang => std::future::pending().await,
            }
        })
    }
}

fn channels() -> (Arc<Pipes>, Channels) {
    let pipes = Arc::new(Pipes::default());
    let env = Env {
        clock: Clock::simulated(1000, 0),
        random: Random::seeded(1),
        network: Arc::clone(&pipes) as Arc<dyn Network>,
        disk: Arc::new(RealDisk),
        tasks: Tasks::new(),
    };
    let channels = Channels::new(&env);
    (pipes, channels)
}

fn get(channel: Channel, limit: Duration) -> Sending<v1::GetReply> {
    let mut kv = KvClient::new(channel);
    Box::pin(async move { kv.get(timed(v1::GetRequest::default(), limit)).await })
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn calls_share_a_connection_until_it_is_forgotten() {
    let (pipes, channels) = channels();
    let first = channels.link("a:1").await.unwrap();
    let second = channels.link("a:1").await.unwrap();
    assert_eq!((first.id, *pipes.made.lock()), (second.id, 1));

    channels.forget("a:1", first.id);
    let third = channels.link("a:1").await.unwrap();
    assert_ne!(third.id, first.id);
    channels.forget("a:1", first.id);
    let fourth = channels.link("a:1").await.unwrap();
    assert_eq!((fourth.id, *pipes.made.lock()), (third.id, 2), "only the named one is forgotten");
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_node_that_hangs_wait_for_one_connection_together() {
    let (pipes, channels) = channels();
    *pipes.manner.lock() = Manner::Hang;
    let start = tokio::time::Instant::now();
    let (one, two) = tokio::join!(channels.link("a:1"), channels.link("a:1"));
    assert!(one.is_err() && two.is_err());
    assert!(start.elapsed() < 2 * CONNECT_TIMEOUT, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_unreachable() {
    let (pipes, channels) = channels();
    for manner in [Manner::Refuse, Manner::Hang] {
        *pipes.manner.lock() = manner;
        let failure = channels
            .call("a:1", SECOND, |_, _| -> Sending<()> { panic!("there is no channel to send on") })
            .await
            .unwrap_err();
        assert!(matches!(failure, Failure::Unreachable(_)), "{failure:?}");
    }
    *pipes.manner.lock() = Manner::Accept;
    assert!(channels.link("a:1").await.is_ok(), "a failure is not remembered");
}

#[tokio::test(start_paused = true)]
async fn silence_proves_nothing_and_ends_the_channel() {
    let (pipes, channels) = channels();
    let failure = channels.call("a:1", SECOND, get).await.unwrap_err();
    let Failure::Silent(error) = failure else { panic!("{failure:?}") };
    assert_eq!(error.may_have_applied, MayHaveApplied::Unknown);
    assert!(matches!(error.kind, ErrorKind::DeadlineExceeded { .. }), "{error:?}");

    assert!(channels.link("a:1").await.is_ok());
    assert_eq!(*pipes.made.lock(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_not_replaced_under_a_request() {
    let (pipes, channels) = channels();
    let link = channels.link("a:1").await.unwrap();
    pipes.far_ends.lock().clear();
    // The transport may take a request or two before it notices; their fate is not known.
    let mut refused = false;
    for _ in 0..100 {
        let status = get(link.channel.clone(), SECOND).await.unwrap_err();
        refused = never_left(&status);
        if refused {
            break;
        }
        let lost = lost("a:1", &status);
        assert_eq!(lost.may_have_applied, MayHaveApplied::Unknown);
        assert_ne!(lost.kind, ErrorKind::Cancelled, "nobody cancelled it");
    }
    assert!(refused);
    assert_eq!(*pipes.made.lock(), 1);

    // A call that meets this channel connects anew and is heard there.
    let failure = channels.call("a:1", SECOND, get).await.unwrap_err();
    assert!(matches!(failure, Failure::Silent(_)), "{failure:?}");
    assert_eq!(*pipes.made.lock(), 2);
}

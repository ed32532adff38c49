//! Delivery and faults of the simulated network, under a paused clock.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, advance, timeout};

use super::link::WINDOW;
use super::{Cut, SimWorld};
use crate::network::{Network, Stream};
use crate::random::Random;

/// Longer than anything takes that is not held back.
const LONG: Duration = Duration::from_secs(60);

fn world(seed: u64) -> SimWorld {
    SimWorld::new(Random::seeded(seed))
}

fn host(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn addr(number: u8) -> SocketAddr {
    SocketAddr::new(host(number), 7401)
}

fn ms(span: u64) -> Duration {
    Duration::from_millis(span)
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

/// A connection from host 1 to host 2: its end on either.
async fn pair(world: &SimWorld) -> (Stream, Stream) {
    let (caller, called) = (world.network(host(1)), world.network(host(2)));
    let listener = called.listen(addr(2)).await.expect("a free address");
    let target = addr(2).to_string();
    let (near, far) = join(caller.connect(&target), listener.accept()).await;
    (near.expect("a listener"), far.expect("a caller").0)
}

async fn read_byte(stream: &mut Stream) -> io::Result<u8> {
    stream.read_u8().await
}

#[tokio::test(start_paused = true)]
async fn bytes_arrive_in_order_and_take_their_time() {
    let world = world(1);
    world.set_latency(ms(5)..=ms(40));
    let (mut near, mut far) = pair(&world).await;
    let sent: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let start = Instant::now();
    for part in sent.chunks(100) {
        near.write_all(part).await.expect("an open stream");
    }
    near.shutdown().await.expect("an open stream");
    assert_eq!(start.elapsed(), Duration::ZERO, "there is room for all");
    let mut received = vec![read_byte(&mut far).await.expect("a byte on its way")];
    assert!(start.elapsed() >= ms(5) && start.elapsed() <= ms(40), "{:?}", start.elapsed());
    far.read_to_end(&mut received).await.expect("an end on its way");
    assert!(start.elapsed() <= ms(40), "{:?}", start.elapsed());
    assert_eq!(received, sent);
}

#[tokio::test(start_paused = true)]
async fn a_writer_waits_for_its_reader() {
    let (mut near, mut far) = pair(&world(1)).await;
    let sent = vec![7_u8; WINDOW + 1000];
    assert_eq!(near.write(&sent).await.expect("an open stream"), WINDOW);
    assert!(timeout(LONG, near.write(&sent)).await.is_err(), "the window is full");
    let mut part = vec![0_u8; 600];
    far.read_exact(&mut part).await.expect("bytes on their way");
    assert_eq!(near.write(&sent).await.expect("an open stream"), 600);

    let mut all = vec![0_u8; 3 * WINDOW];
    let more = vec![7_u8; 2 * WINDOW];
    let (written, read) = join(near.write_all(&more), far.read_exact(&mut all)).await;
    written.expect("room as it is read");
    assert_eq!(read.expect("bytes on their way"), 3 * WINDOW);
    assert!(all.iter().all(|byte| *byte == 7));
    assert!(timeout(LONG, far.read_u8()).await.is_err(), "nothing came twice");
}

#[tokio::test(start_paused = true)]
async fn a_cut_holds_what_healing_delivers() {
    let world = world(1);
    let (mut near, mut far) = pair(&world).await;
    near.write_all(b"a").await.expect("an open stream");
    advance(ms(10)).await;
    near.write_all(b"b").await.expect("an open stream");
    world.cut(host(1), host(2), Cut::Hold);
    near.write_all(b"c").await.expect("a stream that knows of no cut");
    assert_eq!(read_byte(&mut far).await.expect("it had arrived"), b'a');
    assert!(timeout(LONG, far.read_u8()).await.is_err());

    let (read, start) = join(far.read_u8(), async {
        world.heal(host(1), host(2));
        Instant::now()
    })
    .await;
    assert_eq!(read.expect("healed"), b'b');
    assert!(start.elapsed() >= ms(1) && start.elapsed() <= ms(3), "{:?}", start.elapsed());
    assert_eq!(read_byte(&mut far).await.expect("healed"), b'c');
}

#[tokio::test(start_paused = true)]
async fn a_cut_of_one_direction_leaves_the_other() {
    let world = world(1);
    let (mut near, mut far) = pair(&world).await;
    world.cut_one_way(host(1), host(2), Cut::Hold);
    near.write_all(b"x").await.expect("a stream that knows of no cut");
    far.write_all(b"y").await.expect("an open stream");
    assert_eq!(read_byte(&mut near).await.expect("this way is open"), b'y');
    assert!(timeout(LONG, far.read_u8()).await.is_err());
    world.heal_all();
    assert_eq!(read_byte(&mut far).await.expect("healed"), b'x');
}

#[tokio::test(start_paused = true)]
async fn a_resetting_cut_breaks_both_ends_and_callers_wait() {
    let world = world(1);
    let (mut near, mut far) = pair(&world).await;
    let (mut other, mut served) = {
        let (third, second) = (world.network(host(3)), world.network(host(2)));
        let listener = second.listen(addr(2)).await.expect("a free address");
        let target = addr(2).to_string();
        let (other, served) = join(third.connect(&target), listener.accept()).await;
        (other.expect("a listener"), served.expect("a caller").0)
    };
    let (read, ()) = join(far.read_u8(), async {
        world.cut(host(1), host(2), Cut::Reset);
    })
    .await;
    let reset = Some(io::ErrorKind::ConnectionReset);
    assert_eq!(kind(read), reset);
    assert_eq!(kind(near.read_u8().await), reset);
    assert_eq!(kind(near.write(b"x").await), reset);
    assert_eq!(kind(far.write(b"x").await), reset);
    other.write_all(b"z").await.expect("not across the cut");
    assert_eq!(read_byte(&mut served).await.expect("not across the cut"), b'z');

    let (caller, called) = (world.network(host(1)), world.network(host(2)));
    let listener = called.listen(addr(2)).await.expect("a free address");
    let target = addr(2).to_string();
    assert!(timeout(LONG, caller.connect(&target)).await.is_err());
    let (near, (far, ())) = join(
        caller.connect(&target),
        join(listener.accept(), async { world.heal(host(1), host(2)) }),
    )
    .await;
    assert!(near.is_ok() && far.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_killed_host_takes_its_streams_and_listeners_with_it() {
    let world = world(1);
    let (mut near, mut far) = pair(&world).await;
    let (first, second) = (world.network(host(1)), world.network(host(2)));
    let listener = second.listen(addr(2)).await.expect("a free address");
    let (accepted, start) = join(listener.accept(), async {
        world.reset_host(host(2));
        Instant::now()
    })
    .await;
    let (aborted, reset) =
        (Some(io::ErrorKind::ConnectionAborted), Some(io::ErrorKind::ConnectionReset));
    assert_eq!(kind(accepted), aborted);
    assert_eq!(kind(far.read_u8().await), reset);
    assert_eq!(kind(far.write(b"x").await), reset);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(kind(near.read_u8().await), reset);
    assert!(start.elapsed() >= ms(1) && start.elapsed() <= ms(3), "{:?}", start.elapsed());

    let target = addr(2).to_string();
    assert_eq!(kind(first.connect(&target).await), Some(io::ErrorKind::ConnectionRefused));
    assert_eq!(kind(second.listen(addr(2)).await), aborted);
    assert_eq!(kind(second.connect("10.0.0.1:7401").await), aborted);

    let next = world.network(host(2));
    let again = next.listen(addr(2)).await.expect("free again");
    drop(listener);
    let (near, far) = join(first.connect(&target), again.accept()).await;
    assert!(near.is_ok() && far.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_kill_behind_a_cut_is_heard_of_when_it_is_healed() {
    let world = world(1);
    let (mut near, _far) = pair(&world).await;
    world.cut(host(1), host(2), Cut::Hold);
    world.reset_host(host(2));
    assert!(timeout(LONG, near.read_u8()).await.is_err());
    near.write_all(b"x").await.expect("nobody told it");
    world.heal(host(1), host(2));
    assert_eq!(kind(near.read_u8().await), Some(io::ErrorKind::ConnectionReset));
}

#[tokio::test(start_paused = true)]
async fn who_is_not_accepted_is_refused_or_reset() {
    let world = world(1);
    let (caller, called) = (world.network(host(1)), world.network(host(2)));
    let target = addr(2).to_string();
    let start = Instant::now();
    let refused = Some(io::ErrorKind::ConnectionRefused);
    assert_eq!(kind(caller.connect(&target).await), refused);
    assert!(start.elapsed() >= ms(2) && start.elapsed() <= ms(6), "there and back");

    let listener = called.listen(addr(2)).await.expect("a free address");
    let mut waiting = caller.connect(&target).await.expect("a listener");
    drop(listener);
    assert_eq!(kind(waiting.read_u8().await), Some(io::ErrorKind::ConnectionReset));
    assert_eq!(kind(caller.connect(&target).await), refused);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_ends_or_resets_the_other() {
    let (mut near, mut far) = pair(&world(1)).await;
    near.write_all(b"bye").await.expect("an open stream");
    drop(near);
    let mut received = Vec::new();
    far.read_to_end(&mut received).await.expect("an orderly end");
    assert_eq!(received, b"bye");
    far.write_all(b"x").await.expect("it cannot know yet");
    advance(ms(10)).await;
    assert_eq!(kind(far.write(b"x").await), Some(io::ErrorKind::ConnectionReset));

    let (near, mut far) = pair(&world(1)).await;
    far.write_all(b"unread").await.expect("an open stream");
    drop(near);
    assert_eq!(kind(far.read_u8().await), Some(io::ErrorKind::ConnectionReset));
}

#[tokio::test(start_paused = true)]
async fn after_a_shutdown_the_other_direction_goes_on() {
    let (mut near, mut far) = pair(&world(1)).await;
    near.shutdown().await.expect("an open stream");
    assert_eq!(far.read(&mut [0; 4]).await.expect("an orderly end"), 0);
    far.write_all(b"x").await.expect("an open stream");
    assert_eq!(read_byte(&mut near).await.expect("this way is open"), b'x');
    assert_eq!(kind(near.write(b"y").await), Some(io::ErrorKind::BrokenPipe));
}

#[tokio::test(start_paused = true)]
async fn addresses_are_those_of_the_host() {
    let world = world(1);
    let network = world.network(host(1));
    let any = network.listen("0.0.0.0:0".parse().expect("an address")).await.expect("a port");
    let other = network.listen(SocketAddr::new(host(1), 0)).await.expect("a port");
    assert_eq!((any.local_addr().ip(), other.local_addr().ip()), (host(1), host(1)));
    assert_ne!(any.local_addr().port(), other.local_addr().port());
    let taken = network.listen(any.local_addr()).await;
    assert_eq!(kind(taken), Some(io::ErrorKind::AddrInUse));
    let foreign = network.listen(addr(2)).await;
    assert_eq!(kind(foreign), Some(io::ErrorKind::AddrNotAvailable));
    let named = network.connect("localhost:7401").await;
    assert_eq!(kind(named), Some(io::ErrorKind::InvalidInput));
}

/// When each of some echoed messages was back.
async fn trace(seed: u64) -> Vec<Duration> {
    let world = world(seed);
    world.set_latency(ms(1)..=ms(50));
    let (mut near, mut far) = pair(&world).await;
    let start = Instant::now();
    let mut back = Vec::new();
    for message in 0..30 {
        near.write_u8(message).await.expect("an open stream");
        let heard = read_byte(&mut far).await.expect("a byte on its way");
        far.write_u8(heard).await.expect("an open stream");
        assert_eq!(read_byte(&mut near).await.expect("a byte on its way"), message);
        back.push(start.elapsed());
    }
    back
}

#[tokio::test(start_paused = true)]
async fn equal_seeds_give_equal_deliveries() {
    assert_eq!(trace(7).await, trace(7).await);
    assert_ne!(trace(7).await, trace(8).await);
}

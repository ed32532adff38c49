//! With plain sockets: who connects is known by the port that it was bound to before.

use std::net::Ipv4Addr;

use tokio::net::{TcpSocket, TcpStream};

use super::*;
use crate::process::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);
/// For showing that nothing comes: long against the microseconds that a byte takes here.
const SILENCE: Duration = Duration::from_millis(100);

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// A proxy in front of node 2, which is the test itself.
struct Front {
    proxy: Proxy,
    addr: SocketAddr,
    node: Arc<dyn Listener>,
    callers: Arc<Mutex<BTreeMap<u16, u16>>>,
}

impl Front {
    async fn new() -> Self {
        let env = Env::real().unwrap();
        let node = env.network.listen(any_port()).await.unwrap();
        let callers: Arc<Mutex<BTreeMap<u16, u16>>> = Arc::default();
        let known = Arc::clone(&callers);
        let identify: Identify = Arc::new(move |caller: SocketAddr, _: SocketAddr| {
            known.lock().get(&caller.port()).copied()
        });
        let proxy = Proxy::new(env, identify);
        let addr = proxy.add(2, any_port(), node.local_addr().to_string()).await.unwrap();
        Self { proxy, addr, node, callers }
    }

    /// A connection to the proxy; the proxy knows its maker if there is one.
    async fn connect(&self, maker: Option<u16>) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(any_port()).unwrap();
        if let Some(maker) = maker {
            self.callers.lock().insert(socket.local_addr().unwrap().port(), maker);
        }
        socket.connect(self.addr).await.unwrap()
    }

    /// Both ends of a connection of `maker` to node 2, through the proxy.
    async fn pair(&self, maker: u16) -> (TcpStream, Stream) {
        let caller = self.connect(Some(maker)).await;
        let accepted = tokio::time::timeout(PATIENCE, self.node.accept());
        (caller, accepted.await.unwrap().unwrap().0)
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// The next bytes, as many as `text` has, are these.
async fn expect(stream: &mut (impl AsyncRead + Unpin), text: &str) {
    let mut bytes = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes, text.as_bytes());
}

async fn is_silent(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    tokio::time::timeout(SILENCE, stream.read_u8()).await.is_err()
}

/// The connection ends, in whatever way, without another byte.
async fn expect_end(stream: &mut (impl AsyncRead + Unpin)) {
    let mut bytes = [0; 1];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap();
    assert!(read.is_err() || read.is_ok_and(|length| length == 0), "a byte arrived");
}

#[tokio::test]
async fn bytes_and_ends_pass_in_both_directions() {
    let front = Front::new().await;
    let (mut caller, mut callee) = front.pair(1).await;
    send(&mut caller, "question").await;
    expect(&mut callee, "question").await;
    send(&mut callee, "answer").await;
    expect(&mut caller, "answer").await;
    assert_eq!((front.proxy.connections(1, 2), front.proxy.connections(2, 3)), (1, 0));
    assert_eq!(front.proxy.connections(2, 1), 1);
    drop(caller);
    expect_end(&mut callee).await;
    drop(callee);
    wait_until("nothing is carried", PATIENCE, || async { front.proxy.connections(1, 2) == 0 })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_held_pair_is_silent_and_goes_on_after_the_heal() {
    let front = Front::new().await;
    let (mut caller, mut callee) = front.pair(1).await;
    let (mut third, mut for_third) = front.pair(3).await;
    front.proxy.cut(&[(1, 2), (2, 1)], Cut::Hold);
    send(&mut caller, "there").await;
    send(&mut callee, "back").await;
    send(&mut third, "through").await;
    expect(&mut for_third, "through").await;
    assert!(is_silent(&mut callee).await && is_silent(&mut caller).await);
    assert_eq!(front.proxy.connections(1, 2), 1, "it stays open");
    front.proxy.heal();
    expect(&mut callee, "there").await;
    expect(&mut caller, "back").await;
}

#[tokio::test]
async fn a_cut_of_one_way_leaves_the_other() {
    let front = Front::new().await;
    let (mut caller, mut callee) = front.pair(1).await;
    front.proxy.cut(&[(2, 1)], Cut::Hold);
    send(&mut caller, "question").await;
    expect(&mut callee, "question").await;
    send(&mut callee, "answer").await;
    assert!(is_silent(&mut caller).await);
    // The end of a connection passes no more than its bytes do.
    drop(callee);
    assert!(is_silent(&mut caller).await);
    front.proxy.heal();
    expect(&mut caller, "answer").await;
    expect_end(&mut caller).await;
}

#[tokio::test]
async fn more_than_the_buffers_take_waits_with_its_sender() {
    let front = Front::new().await;
    let (mut caller, mut callee) = front.pair(1).await;
    front.proxy.cut(&[(1, 2)], Cut::Hold);
    // The kernel's buffers of two sockets are far smaller.
    let much = vec![7_u8; 64 << 20];
    let sending = async {
        caller.write_all(&much).await.unwrap();
    };
    let mut sending = std::pin::pin!(sending);
    assert!(tokio::time::timeout(SILENCE, sending.as_mut()).await.is_err(), "it is taken in");
    front.proxy.heal();
    let mut arrived = vec![0; much.len()];
    let receiving = callee.read_exact(&mut arrived);
    let (read, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(receiving, sending) }).await.unwrap();
    read.unwrap();
    assert!(arrived == much, "nothing is lost");
}

#[tokio::test]
async fn a_reset_closes_and_refuses() {
    let front = Front::new().await;
    let (mut caller, mut callee) = front.pair(1).await;
    let (mut third, mut for_third) = front.pair(3).await;
    front.proxy.cut(&[(2, 1)], Cut::Reset);
    expect_end(&mut caller).await;
    expect_end(&mut callee).await;
    wait_until("nothing is carried", PATIENCE, || async { front.proxy.connections(1, 2) == 0 })
        .await
        .unwrap();
    let mut refused = front.connect(Some(1)).await;
    expect_end(&mut refused).await;
    send(&mut third, "through").await;
    expect(&mut for_third, "through").await;
    front.proxy.heal();
    let (mut again, mut for_again) = front.pair(1).await;
    send(&mut again, "again").await;
    expect(&mut for_again, "again").await;
}

#[tokio::test]
async fn a_new_connection_behind_a_hold_is_never_served() {
    let front = Front::new().await;
    // One way is enough: a connection needs both.
    front.proxy.cut(&[(2, 1)], Cut::Hold);
    let mut late = front.connect(Some(1)).await;
    send(&mut late, "hello").await;
    assert!(is_silent(&mut late).await, "it is open");
    front.proxy.heal();
    expect_end(&mut late).await;
    let (mut caller, mut callee) = front.pair(1).await;
    send(&mut caller, "new").await;
    expect(&mut callee, "new").await;
}

#[tokio::test]
async fn a_stranger_is_not_served() {
    let front = Front::new().await;
    let mut stranger = front.connect(None).await;
    expect_end(&mut stranger).await;
    assert!(tokio::time::timeout(SILENCE, front.node.accept()).await.is_err());
}

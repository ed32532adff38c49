//! What is refused and what is not; the file, pinned byte by byte; and that nobody is let in before the
//! file knows.

use std::net::{IpAddr, Ipv4Addr};

use annulus_runtime::{Clock, Random, SimDisk, SimWorld, Tasks};
use annulus_types::{ClusterId, NodeInfo};

use super::*;
use crate::options::Timing;

const NODE: NodeId = NodeId(3);

fn life(incarnation: u64, boot_counter: u64, boot_id: u64, segment: u64) -> Life {
    Life { incarnation, boot_counter, boot_id, segment }
}

fn remembers(known: Life) -> Memory {
    Memory(BTreeMap::from([(NODE, known)]))
}

#[test]
fn a_life_is_judged_by_the_one_before() {
    let known = life(7, 5, 50, 20);
    let cases = [
        (known, Verdict::Known),
        (life(7, 5, 50, 21), Verdict::Newer { vital: false }),
        // Late: two links tell of one process.
        (life(7, 5, 50, 19), Verdict::Known),
        (life(7, 6, 60, 21), Verdict::Newer { vital: true }),
        (life(7, 9, 50, 22), Verdict::Newer { vital: true }),
    ];
    for (told, expected) in cases {
        let mut memory = remembers(known);
        assert_eq!(memory.judge(NODE, told), expected, "{told:?}");
        let is_newer = expected != Verdict::Known;
        assert_eq!(memory, remembers(if is_newer { told } else { known }), "{told:?}");
    }
    let refused = [
        (life(7, 4, 40, 30), true),
        (life(7, 4, 50, 20), true),
        (life(7, 5, 51, 20), true),
        (life(7, 5, 51, 30), true),
        // A start makes a segment: the same one again is a log that was set back.
        (life(7, 6, 60, 20), true),
        (life(7, 6, 60, 19), true),
        (life(8, 9, 90, 90), false),
        (life(8, 5, 50, 20), false),
        (life(6, 1, 1, 1), false),
    ];
    for (told, is_dead) in refused {
        let mut memory = remembers(known);
        match memory.judge(NODE, told) {
            Verdict::Refused { dead, .. } => assert_eq!(dead, is_dead, "{told:?}"),
            other => panic!("{told:?}: {other:?}"),
        }
        assert_eq!(memory, remembers(known), "what is refused changes nothing: {told:?}");
    }
}

#[test]
fn nodes_are_told_apart_and_their_number_is_bounded() {
    let mut memory = Memory::default();
    for node in 0..u32::try_from(NODES_MOST).unwrap() {
        let told = life(u64::from(node), 1, 1, 1);
        assert_eq!(memory.judge(NodeId(node), told), Verdict::Newer { vital: true });
    }
    assert_eq!(memory.encode().len(), FILE_BYTES_MOST);
    let one_more = memory.judge(NodeId(u32::MAX), life(1, 1, 1, 1));
    assert!(matches!(one_more, Verdict::Refused { dead: false, .. }), "{one_more:?}");
    assert_eq!(memory.judge(NodeId(5), life(5, 1, 1, 1)), Verdict::Known);
}

/// Made by an independent implementation of the layout in the module's head.
const FILE_GOLDEN: &str = concat!(
    "01000000010000000000000001000000000000000200000000000000030000000000000004000000",
    "020102030405060708000000000000000300000000feedf00d0000000000000009f3d16d57",
);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_layout_is_pinned() {
    let memory = Memory(BTreeMap::from([
        (NodeId(2), life(0x0102_0304_0506_0708, 3, 0xfeed_f00d, 9)),
        (NodeId(1), life(1, 2, 3, 4)),
    ]));
    let bytes = memory.encode();
    assert_eq!(hex(&bytes), FILE_GOLDEN);
    assert_eq!(Memory::decode(&bytes), Some(memory));
}

#[test]
fn bytes_that_are_not_what_was_written_are_no_memory() {
    let whole = remembers(life(7, 5, 50, 20)).encode();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        assert_eq!(Memory::decode(&flipped), None, "byte {at}");
        assert_eq!(Memory::decode(&whole[..at]), None, "cut at {at}");
    }
    // Intact, of another version; intact, with half a node.
    for body in [&[VERSION + 1][..], &[VERSION, 0, 0, 0, 1]] {
        let mut strange = body.to_vec();
        strange.put_u32(crc32fast::hash(body));
        assert_eq!(Memory::decode(&strange), None, "{body:?}");
    }
    let nobody = Memory::default();
    assert_eq!(Memory::decode(&nobody.encode()), Some(nobody));
}

/// A node's surroundings, and the memory that a process of it opens.
struct Surroundings {
    disk: SimDisk,
    env: Env,
}

impl Surroundings {
    fn new() -> Self {
        let disk = SimDisk::new(Random::seeded(1));
        let world = SimWorld::new(Random::seeded(2));
        let env = Env {
            clock: Clock::simulated(1000, 0),
            random: Random::seeded(3),
            network: Arc::new(world.network(IpAddr::V4(Ipv4Addr::LOCALHOST))),
            disk: Arc::new(disk.clone()),
            tasks: Tasks::new(),
        };
        Self { disk, env }
    }

    fn open(&self) -> Arc<Lives> {
        let options = Options::new(
            ClusterId([7; 16]),
            NodeInfo::default(),
            1,
            (1, 1),
            Timing::default(),
            PathBuf::from("/"),
            OnDead::new(|_| {}),
        );
        Lives::open(&self.env, &options, Waits::Inline, WeakenHost::default())
    }

    /// What the next process would find.
    fn stored(&self) -> Memory {
        Memory::read(&self.disk, Path::new("/"))
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_new_is_heard_before_it_is_durable() {
    let node = Surroundings::new();
    let lives = node.open();
    let told = life(7, 1, 10, 1);
    node.disk.fail_next_syncs(1);
    let heard = lives.hear(NODE, told).await;
    assert!(matches!(heard, Err(NotHeard::NotRemembered(_))), "{heard:?}");
    // The same again is nothing new, and still not durable.
    node.disk.fail_next_syncs(1);
    let heard = lives.hear(NODE, told).await;
    assert!(matches!(heard, Err(NotHeard::NotRemembered(_))), "{heard:?}");
    assert!(lives.hear(NODE, told).await.is_ok());
    node.disk.crash();
    assert_eq!(node.stored(), remembers(told));

    // A process that ended before its sync leaves what a power cut may still undo.
    let started_again = node.open();
    let before = node.disk.counters().syncs;
    assert!(started_again.hear(NODE, told).await.is_ok());
    assert!(node.disk.counters().syncs > before, "what was read counts once it is written");
    let before = node.disk.counters().syncs;
    assert!(started_again.hear(NODE, told).await.is_ok());
    assert_eq!(node.disk.counters().syncs, before, "and then costs nothing more");
    let older = started_again.hear(NODE, life(7, 0, 10, 1)).await;
    assert!(matches!(older, Err(NotHeard::Refused { dead: true, .. })), "{older:?}");
}

#[tokio::test(start_paused = true)]
async fn an_older_state_never_replaces_a_newer_one() {
    let node = Surroundings::new();
    let lives = node.open();
    lives.hear(NODE, life(7, 1, 10, 1)).await.unwrap();
    let of_the_first = lives.durable.load(Ordering::SeqCst);
    lives.hear(NodeId(4), life(8, 1, 10, 1)).await.unwrap();
    let before = node.disk.counters();
    // The first write's turn comes late.
    lives.store(of_the_first).unwrap();
    assert_eq!(node.disk.counters(), before, "a later write held it");
    assert_eq!(node.stored().0.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn segments_are_written_once_a_second_and_by_whatever_is_written_next() {
    let node = Surroundings::new();
    let lives = node.open();
    lives.hear(NODE, life(7, 1, 10, 1)).await.unwrap();
    let written = |segment| node.stored() == remembers(life(7, 1, 10, segment));
    let before = node.disk.counters();
    for segment in 2..=9 {
        lives.hear(NODE, life(7, 1, 10, segment)).await.unwrap();
    }
    assert_eq!(node.disk.counters(), before, "it counts in memory");
    let set_back = lives.hear(NODE, life(7, 2, 20, 9)).await;
    assert!(matches!(set_back, Err(NotHeard::Refused { dead: true, .. })), "{set_back:?}");

    tokio::time::sleep(SEGMENTS_EVERY).await;
    lives.hear(NODE, life(7, 1, 10, 9)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(written(9), "{:?}", node.stored());
    lives.hear(NODE, life(7, 1, 10, 10)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(written(9), "the second is not over");

    lives.hear(NodeId(4), life(8, 1, 10, 1)).await.unwrap();
    assert_eq!(node.stored().0.get(&NODE), Some(&life(7, 1, 10, 10)));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_an_empty_memory() {
    let node = Surroundings::new();
    let told = life(7, 5, 10, 5);
    node.open().hear(NODE, told).await.unwrap();
    node.disk.flip_byte(Path::new("/peers"), 9).unwrap();
    assert_eq!(node.stored(), Memory::default());
    let lives = node.open();
    assert!(lives.hear(NODE, life(7, 4, 9, 4)).await.is_ok(), "nothing is remembered");
    assert_eq!(node.stored(), remembers(life(7, 4, 9, 4)), "and the file is whole again");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_folder_is_told_once() {
    let node = Surroundings::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let options = Options::new(
        ClusterId([7; 16]),
        NodeInfo::default(),
        1,
        (1, 1),
        Timing::default(),
        PathBuf::from("/"),
        OnDead::new(move |reason| telling.lock().push(reason.to_owned())),
    );
    let lives = Lives::open(&node.env, &options, Waits::Inline, WeakenHost::default());
    lives.told_dead(NODE, "rolled back").await;
    lives.told_dead(NodeId(4), "rolled back, too").await;
    assert_eq!(*told.lock(), ["rolled back"]);
}

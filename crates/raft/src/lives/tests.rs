//! What is refused and what is not; the file, pinned byte by byte; and that nobody is let in before the
//! file knows.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use annulus_runtime::{Clock, Disk as _, Random, SimDisk, SimWorld, Tasks};
use annulus_types::{ClusterId, NodeInfo};
use annulus_wal::Position;
use bytes::BufMut as _;

use super::memory::{FILE_BYTES_MOST, FORMER_MOST, NODES_MOST, Past, Undecoded, VERSION};
use super::*;
use crate::options::Timing;

const NODE: NodeId = NodeId(3);

fn at(segment: u64, offset: u64) -> Position {
    Position { segment, offset }
}

/// A start with a log that has come to that segment and ended in the one before it.
fn life(incarnation: u64, boot_counter: u64, boot_id: u64, segment: u64) -> Life {
    let (position, recovered) = (at(segment, 8192), at(segment.saturating_sub(1), 8192));
    Life { incarnation, boot_counter, boot_id, position, recovered }
}

/// Start 5 of folder 7, in segment 20.
fn fifth(offset: u64) -> Life {
    Life { position: at(20, offset), ..life(7, 5, 50, 20) }
}

/// Start 6 of folder 7, which found the log to end there.
fn sixth(recovered: Position) -> Life {
    let position = at(recovered.segment + 1, 12_288);
    Life { incarnation: 7, boot_counter: 6, boot_id: 60, position, recovered }
}

fn heard(known: Known) -> Past {
    Past { known: Some(known), ..Past::default() }
}

fn remembers(told: Life) -> Memory {
    Memory(BTreeMap::from([(NODE, heard(Known::begin(told)))]))
}

#[test]
fn a_life_is_judged_by_the_one_before() {
    let known = fifth(40_960);
    let cases = [
        (known, Verdict::Known),
        (fifth(45_056), Verdict::Newer { vital: false }),
        (life(7, 5, 50, 21), Verdict::Newer { vital: false }),
        // Late: two links tell of one process.
        (fifth(36_864), Verdict::Known),
        (life(7, 5, 50, 19), Verdict::Known),
        (sixth(at(20, 40_960)), Verdict::Newer { vital: true }),
        (sixth(at(20, 45_056)), Verdict::Newer { vital: true }),
        (life(7, 9, 50, 22), Verdict::Newer { vital: true }),
    ];
    for (told, expected) in cases {
        let mut memory = remembers(known);
        assert_eq!(memory.judge(NODE, told, None), expected, "{told:?}");
        let is_newer = expected != Verdict::Known;
        assert_eq!(memory, remembers(if is_newer { told } else { known }), "{told:?}");
    }
    let refused = [
        (life(7, 4, 40, 30), true),
        (life(7, 4, 50, 20), true),
        (life(7, 5, 51, 20), true),
        (life(7, 5, 51, 30), true),
        // Set back within its newest start: it begins the segment that a sound start would begin.
        (sixth(at(20, 36_864)), true),
        (sixth(at(20, 8192)), true),
        (sixth(at(19, 90_112)), true),
        (life(7, 9, 90, 20), true),
        (life(8, 9, 90, 90), false),
        (life(8, 5, 50, 20), false),
        (life(6, 1, 1, 1), false),
    ];
    for (told, is_dead) in refused {
        let mut memory = remembers(known);
        match memory.judge(NODE, told, None) {
            Verdict::Refused { dead, .. } => assert_eq!(dead, is_dead, "{told:?}"),
            other => panic!("{told:?}: {other:?}"),
        }
        assert_eq!(memory, remembers(known), "what is refused changes nothing: {told:?}");
    }
}

#[test]
fn a_copy_and_its_original_are_one_folder_of_which_one_counts() {
    let copied = at(20, 40_960);
    // The original has told of something written since.
    let mut memory = remembers(fifth(45_056));
    let copy = memory.judge(NODE, sixth(copied), None);
    assert!(matches!(copy, Verdict::Refused { dead: true, .. }), "{copy:?}");
    assert_eq!(memory.judge(NODE, fifth(49_152), None), Verdict::Newer { vital: false });

    // It has not: the copy looks like the original after a restart.
    let mut memory = remembers(fifth(40_960));
    assert_eq!(memory.judge(NODE, sixth(copied), None), Verdict::Newer { vital: true });
    let restarted = Life { boot_id: 61, ..sixth(copied) };
    for original in [fifth(45_056), restarted] {
        let judged = memory.judge(NODE, original, None);
        assert!(matches!(judged, Verdict::Refused { dead: true, .. }), "{judged:?}");
    }
}

#[test]
fn an_answer_that_tells_less_than_was_known_when_it_was_asked_for_is_the_end() {
    let known = Some(Known::begin(fifth(40_960)));
    let below = fifth(36_864);
    // The question left before anything, less, or another start was known.
    let earlier = [None, Some(Known::begin(below)), Some(Known::begin(life(7, 4, 40, 30)))];
    for asked in earlier {
        let mut memory = remembers(fifth(40_960));
        assert_eq!(memory.judge(NODE, below, asked), Verdict::Known, "{asked:?}");
        assert_eq!(memory.judge(NODE, fifth(40_960), known), Verdict::Known);
        assert_eq!(memory, remembers(fifth(40_960)));
    }
    let mut memory = remembers(fifth(40_960));
    let judged = memory.judge(NODE, below, known);
    assert!(matches!(judged, Verdict::WentBack { .. }), "{judged:?}");
    // Whatever comes of that folder later, also in another process of this node.
    let mut memory = Memory::decode(&memory.encode()).unwrap();
    for told in [below, fifth(90_112), sixth(at(20, 90_112)), life(7, 4, 40, 30)] {
        for asked in [None, known] {
            let judged = memory.judge(NODE, told, asked);
            assert!(matches!(judged, Verdict::Refused { dead: true, .. }), "{judged:?}");
        }
    }
    let other_folder = memory.judge(NODE, life(8, 1, 1, 1), None);
    assert!(matches!(other_folder, Verdict::Refused { dead: false, .. }), "{other_folder:?}");

    // An answer of an earlier start that comes late says nothing about the newer one.
    let mut memory = remembers(sixth(at(20, 40_960)));
    let judged = memory.judge(NODE, below, known);
    assert!(matches!(judged, Verdict::Refused { dead: true, .. }), "{judged:?}");
    assert_eq!(memory, remembers(sixth(at(20, 40_960))));
}

#[test]
fn nodes_are_told_apart_and_their_number_is_bounded() {
    let mut memory = Memory::default();
    // One more than are remembered of a node, and the admitted one.
    let last = u64::try_from(FORMER_MOST).unwrap() + 2;
    for node in 0..u32::try_from(NODES_MOST).unwrap() {
        for incarnation in 1..=last {
            assert!(memory.admit(NodeId(node), incarnation));
        }
        let told = life(last, u64::from(node), 1, 1);
        assert_eq!(memory.judge(NodeId(node), told, None), Verdict::Newer { vital: true });
    }
    let bytes = memory.encode();
    assert_eq!(bytes.len(), FILE_BYTES_MOST);
    assert_eq!(Memory::decode(&bytes).as_ref(), Ok(&memory));
    let one_more = memory.judge(NodeId(u32::MAX), life(1, 1, 1, 1), None);
    assert!(matches!(one_more, Verdict::Refused { dead: false, .. }), "{one_more:?}");
    assert!(!memory.admit(NodeId(u32::MAX), 1));
    assert_eq!(memory.judge(NodeId(5), life(last, 5, 1, 1), None), Verdict::Known);
    // The first is forgotten, and refused all the same.
    for (incarnation, is_dead) in [(1, false), (2, true), (last - 1, true)] {
        assert!(is_refused(&mut memory, life(incarnation, 9, 9, 9), is_dead));
    }
}

/// Whether node 3 is refused with that, and so.
fn is_refused(memory: &mut Memory, told: Life, is_dead: bool) -> bool {
    let judged = memory.judge(NODE, told, None);
    matches!(judged, Verdict::Refused { dead, .. } if dead == is_dead)
}

#[test]
fn the_admitted_life_takes_the_place_of_the_former_for_ever() {
    let mut memory = remembers(fifth(40_960));
    assert!(memory.admit(NODE, 7), "it was only seen first");
    assert!(!memory.admit(NODE, 7));
    assert_eq!(memory.judge(NODE, fifth(40_960), None), Verdict::Known, "nothing is forgotten");
    assert!(is_refused(&mut memory, life(8, 1, 1, 1), false), "it comes before the table does");
    assert!(!memory.is_replaced(NODE, 7) && memory.is_replaced(NODE, 8));

    assert!(memory.admit(NODE, 8));
    assert!(memory.is_replaced(NODE, 7) && !memory.is_replaced(NODE, 8));
    assert!(!memory.is_replaced(NodeId(4), 7), "nothing was said of node 4");
    // Not heard yet; also another process of this node knows.
    let mut memory = Memory::decode(&memory.encode()).unwrap();
    for told in [fifth(45_056), sixth(at(20, 90_112)), life(7, 90, 90, 90)] {
        assert!(is_refused(&mut memory, told, true), "{told:?}");
    }
    assert!(is_refused(&mut memory, life(9, 1, 1, 1), false));
    assert_eq!(memory.judge(NODE, life(8, 1, 1, 1), None), Verdict::Newer { vital: true });

    // It does not come back, and what is not known is no admission.
    assert!(!memory.admit(NODE, 7) && !memory.admit(NODE, 0));
    assert_eq!(memory.judge(NODE, life(8, 1, 1, 1), None), Verdict::Known);
    assert!(memory.admit(NODE, 9));
    for former in [7, 8] {
        assert!(is_refused(&mut memory, life(former, 90, 90, 90), true), "{former}");
    }
}

#[test]
fn a_life_that_was_only_seen_first_gives_way_and_may_be_admitted_later() {
    let mut memory = remembers(fifth(40_960));
    assert!(memory.admit(NODE, 8));
    // It may be newer than the table that came.
    assert!(is_refused(&mut memory, fifth(40_960), false));
    assert!(memory.admit(NODE, 7));
    assert_eq!(memory.judge(NODE, life(7, 1, 1, 1), None), Verdict::Newer { vital: true });
    assert!(is_refused(&mut memory, life(8, 1, 1, 1), true));

    // A folder that was dead is no burden to the next one.
    let known = Some(Known::begin(life(7, 1, 1, 1)));
    let went_back = Life { position: at(1, 0), ..life(7, 1, 1, 1) };
    let judged = memory.judge(NODE, went_back, known);
    assert!(matches!(judged, Verdict::WentBack { .. }), "{judged:?}");
    assert!(memory.admit(NODE, 9));
    assert_eq!(memory.judge(NODE, life(9, 1, 1, 1), None), Verdict::Newer { vital: true });
}

/// Made by an independent implementation of the layout in the module's head.
const FILE_GOLDEN: &str = concat!(
    "010000000100000000000000000001000000000000000100000000000000020000000000000003000000",
    "000000000400000000000000050000000201020304050607080200000000000000110000000000000012",
    "020102030405060708000000000000000300000000feedf00d0000000000000009000000000000300000",
    "0000030000000000000021000075a8fb05",
);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_layout_is_pinned() {
    let known = |incarnation, boot_counter, boot_id, position, is_dead| Known {
        incarnation,
        boot_counter,
        boot_id,
        position,
        is_dead,
    };
    let memory = Memory(BTreeMap::from([
        (NodeId(3), Past { admitted: Some(0x21), ..Past::default() }),
        (
            NodeId(2),
            Past {
                admitted: Some(0x0102_0304_0506_0708),
                former: vec![0x11, 0x12],
                known: Some(known(0x0102_0304_0506_0708, 3, 0xfeed_f00d, at(9, 0x3000), true)),
            },
        ),
        (NodeId(1), heard(known(1, 2, 3, at(4, 5), false))),
    ]));
    let bytes = memory.encode();
    assert_eq!(hex(&bytes), FILE_GOLDEN);
    assert_eq!(Memory::decode(&bytes), Ok(memory));
}

/// A file whose checksum is right.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes.put_u32(crc32fast::hash(body));
    bytes
}

#[test]
fn bytes_that_are_not_what_was_written_are_no_memory() {
    let whole = remembers(life(7, 5, 50, 20)).encode();
    for place in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        assert_eq!(Memory::decode(&flipped), Err(Undecoded::Damaged), "byte {place}");
        assert_eq!(Memory::decode(&whole[..place]), Err(Undecoded::Damaged), "cut at {place}");
    }
    // Intact, with half a node, with one that is neither dead nor not, and with too many lives.
    let half = sealed(&[VERSION, 0, 0, 0, 1]);
    assert_eq!(Memory::decode(&half), Err(Undecoded::Damaged));
    let mut neither = whole[..whole.len() - 4].to_vec();
    // Behind version, node, admitted life, and the count of former ones.
    assert_eq!(neither[14], 1);
    neither[14] = 3;
    assert_eq!(Memory::decode(&sealed(&neither)), Err(Undecoded::Damaged));
    let count = u8::try_from(FORMER_MOST).unwrap() + 1;
    let mut crowded = [[VERSION].as_slice(), &[0; 12], &[count]].concat();
    crowded.extend(vec![0; usize::from(count) * 8 + 1]);
    assert_eq!(Memory::decode(&sealed(&crowded)), Err(Undecoded::Damaged));
    // Intact, of another version.
    for version in [VERSION - 1, VERSION + 1] {
        let other = sealed(&[version, 9, 9]);
        assert_eq!(Memory::decode(&other), Err(Undecoded::Version(version)));
    }
    let nobody = Memory::default();
    assert_eq!(Memory::decode(&nobody.encode()), Ok(nobody));
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

    fn try_open(&self, on_dead: OnDead) -> Result<Arc<Lives>, HostError> {
        let options = Options::new(
            ClusterId([7; 16]),
            NodeInfo::default(),
            1,
            (1, 1),
            Timing::default(),
            PathBuf::from("/"),
            on_dead,
        );
        Lives::open(&self.env, &options, Waits::Inline, WeakenHost::default())
    }

    fn open(&self) -> Arc<Lives> {
        self.try_open(OnDead::new(|_| {})).unwrap_or_else(|error| panic!("{error}"))
    }

    /// What the next process would find.
    fn stored(&self) -> Memory {
        Memory::read(&self.disk, Path::new("/")).unwrap_or_else(|error| panic!("{error}"))
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
async fn an_admission_is_durable_before_the_admitted_life_is_heard() {
    let node = Surroundings::new();
    let lives = node.open();
    lives.admit(&[(NODE, 7)]).await.unwrap();
    lives.hear(NODE, life(7, 1, 10, 1)).await.unwrap();
    node.disk.fail_next_syncs(1);
    lives.admit(&[(NODE, 8)]).await.unwrap_err();
    assert!(lives.is_replaced(NODE, 7), "it counts all the same");
    node.disk.fail_next_syncs(1);
    let heard = lives.hear(NODE, life(8, 1, 20, 1)).await;
    assert!(matches!(heard, Err(NotHeard::NotRemembered(_))), "{heard:?}");
    // Nothing new, and not durable yet: the table does not count as taken before it is.
    node.disk.fail_next_syncs(1);
    lives.admit(&[(NODE, 8)]).await.unwrap_err();
    lives.admit(&[(NODE, 8)]).await.unwrap();
    node.disk.crash();

    let started_again = node.open();
    let former = started_again.hear(NODE, life(7, 2, 11, 2)).await;
    assert!(matches!(former, Err(NotHeard::Refused { dead: true, .. })), "{former:?}");
    let before = node.disk.counters().syncs;
    started_again.admit(&[(NODE, 8)]).await.unwrap();
    assert!(node.disk.counters().syncs > before, "what was read counts once it is written");
    let before = node.disk.counters().syncs;
    started_again.admit(&[(NODE, 8), (NODE, 7)]).await.unwrap();
    assert_eq!(node.disk.counters().syncs, before, "nothing is new");
    assert!(started_again.hear(NODE, life(8, 1, 20, 1)).await.is_ok());
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
async fn positions_are_written_once_a_second_and_by_whatever_is_written_next() {
    let node = Surroundings::new();
    let lives = node.open();
    lives.hear(NODE, life(7, 1, 10, 1)).await.unwrap();
    let at_offset = |offset| Life { position: at(1, offset), ..life(7, 1, 10, 1) };
    let written = |offset| node.stored() == remembers(at_offset(offset));
    let before = node.disk.counters();
    for block in 3..=9 {
        lives.hear(NODE, at_offset(block * 4096)).await.unwrap();
    }
    assert_eq!(node.disk.counters(), before, "it counts in memory");
    let set_back = Life { recovered: at(1, 8 * 4096), ..life(7, 2, 20, 2) };
    let set_back = lives.hear(NODE, set_back).await;
    assert!(matches!(set_back, Err(NotHeard::Refused { dead: true, .. })), "{set_back:?}");

    tokio::time::sleep(POSITIONS_EVERY).await;
    lives.hear(NODE, at_offset(9 * 4096)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(written(9 * 4096), "{:?}", node.stored());
    lives.hear(NODE, at_offset(10 * 4096)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(written(9 * 4096), "the second is not over");

    lives.hear(NodeId(4), life(8, 1, 10, 1)).await.unwrap();
    let stored = node.stored().0.get(&NODE).and_then(|past| past.known);
    assert_eq!(stored, Some(Known::begin(at_offset(10 * 4096))));
}

#[tokio::test(start_paused = true)]
async fn that_a_process_went_back_is_written() {
    let node = Surroundings::new();
    let lives = node.open();
    lives.hear(NODE, fifth(40_960)).await.unwrap();
    let asked = lives.remembered(NODE);
    let late = lives.hear(NODE, fifth(36_864)).await;
    assert!(late.is_ok(), "pings have no order: {late:?}");
    let answer = lives.hear_answer(NODE, fifth(36_864), asked).await;
    assert!(matches!(answer, Err(NotHeard::Refused { dead: true, .. })), "{answer:?}");
    tokio::time::sleep(Duration::from_millis(1)).await;
    node.disk.crash();
    let heard = node.open().hear(NODE, fifth(90_112)).await;
    assert!(matches!(heard, Err(NotHeard::Refused { dead: true, .. })), "{heard:?}");
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

/// What keeps a node with this file from starting.
fn unusable(bytes: Option<&[u8]>) -> String {
    let node = Surroundings::new();
    match bytes {
        Some(bytes) => replace_file(&node.disk, Path::new("/"), FILE, bytes).unwrap(),
        // Something else than a file does not read.
        None => node.disk.create_dir_all(Path::new("/peers")).unwrap(),
    }
    let before = node.disk.counters();
    let Err(error) = node.try_open(OnDead::new(|_| {})) else { panic!("it has opened") };
    assert_eq!(node.disk.counters(), before);
    error.to_string()
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_read_or_understood_is_no_empty_memory() {
    let later = unusable(Some(&sealed(&[VERSION + 1, 9, 9])));
    assert_eq!(later, "/peers: its format has version 2, which is unknown here");
    let unread = unusable(None);
    assert!(unread.starts_with("/peers: "), "{unread}");
    let endless = unusable(Some(&vec![0; FILE_BYTES_MOST + 1]));
    assert!(endless.starts_with("/peers: "), "{endless}");
}

/// Counts warnings.
struct Warnings(Arc<AtomicU64>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() == tracing::Level::WARN {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn that_a_start_is_refused_is_said_once() {
    let warnings = Arc::new(AtomicU64::new(0));
    let _capturing = tracing::subscriber::set_default(Warnings(Arc::clone(&warnings)));
    let node = Surroundings::new();
    let lives = node.open();
    let (sound, wiped) = (life(7, 1, 10, 1), life(8, 1, 20, 1));
    for _ in 0..5 {
        // Both try again and again; that one is heard makes the other no news.
        assert!(lives.hear(NODE, sound).await.is_ok());
        assert!(lives.hear(NODE, wiped).await.is_err());
    }
    assert_eq!(warnings.load(Ordering::SeqCst), 1);
    let started_again = Life { boot_id: 21, ..wiped };
    for _ in 0..5 {
        assert!(lives.hear(NODE, started_again).await.is_err());
        assert!(lives.hear(NODE, wiped).await.is_err());
    }
    assert_eq!(warnings.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_folder_is_told_once() {
    let node = Surroundings::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let on_dead = OnDead::new(move |reason| telling.lock().push(reason.to_owned()));
    let lives = node.try_open(on_dead).unwrap_or_else(|error| panic!("{error}"));
    lives.told_dead(NODE, "rolled back").await;
    lives.told_dead(NodeId(4), "rolled back, too").await;
    assert_eq!(*told.lock(), ["rolled back"]);
}

//! Which commands are let through, and what is remembered of them across restarts, damage and versions.

use super::*;
use annulus_runtime::RealDisk;
use annulus_runtime::disk::Open;

const GROUP: GroupId = GroupId(7);

fn reign(era: u64) -> Reign {
    Reign { era, incarnation: 5 }
}

fn fence(era: u64, term: u64, generation: u64) -> Fence {
    Fence { reign: reign(era), term, generation }
}

fn begun(era: u64) -> Memory {
    Memory { reign: reign(era), groups: BTreeMap::new() }
}

fn open(dir: &Path) -> Result<Fences, FenceError> {
    Fences::open(Arc::new(RealDisk), dir)
}

#[test]
fn era_comes_before_term_and_term_before_generation() {
    let known = fence(2, 5, 9);
    let memory = begun(2).obey(GROUP, known).unwrap().unwrap();
    let judge = |told| match memory.obey(GROUP, told) {
        Ok(Some(_)) => "raises",
        Ok(None) => "repeats",
        Err(error) => error.field().unwrap_or("later"),
    };
    assert_eq!(judge(known), "repeats");
    assert_eq!(judge(fence(2, 5, 10)), "raises");
    assert_eq!(judge(fence(2, 6, 1)), "raises");
    // It is not stored yet.
    assert_eq!(judge(fence(3, 1, 1)), "later");
    assert_eq!(judge(fence(2, 5, 8)), "generation");
    assert_eq!(judge(fence(2, 4, 10)), "term");
    assert_eq!(judge(fence(1, 6, 10)), "era");
    // A later era binds also groups that were not spoken of in it.
    let other = memory.obey(GroupId(8), fence(1, 9, 9)).unwrap_err();
    assert_eq!(other.field(), Some("era"));
    assert!(memory.obey(GroupId(8), fence(2, 1, 1)).unwrap().is_some());
    assert!(memory.obey_reign(reign(1)).is_err());
    assert_eq!(memory.obey_reign(reign(2)).unwrap(), None);
    let next = memory.obey_reign(reign(3)).unwrap().unwrap();
    assert_eq!(next.reign, reign(3));
    let first = next.obey(GROUP, fence(3, 1, 1)).unwrap().unwrap();
    assert_eq!(first.groups[&GROUP], fence(3, 1, 1), "a new manager begins to count anew");
}

#[test]
fn of_two_managers_of_one_era_the_higher_incarnation_is_obeyed() {
    let memory = begun(2).obey(GROUP, fence(2, 5, 9)).unwrap().unwrap();
    let rival = Reign { era: 2, incarnation: 9 };
    let command = |reign| Fence { reign, term: 1, generation: 0 };
    let early = memory.obey(GROUP, command(rival)).unwrap_err();
    assert_eq!(early.field(), None, "it is stored first");
    let next = memory.obey_reign(rival).unwrap().unwrap();
    let next = next.obey(GROUP, command(rival)).unwrap().unwrap();
    for late in [next.obey(GROUP, fence(2, 5, 9)), next.obey_reign(reign(2))] {
        let late = late.unwrap_err();
        assert_eq!(late.field(), Some("era"));
        let text = "this node obeys the manager of era 2 of incarnation 9; this one is of era 2 of \
                    incarnation 5";
        assert_eq!(late.to_string(), text);
    }
    // Of two copies, too.
    for (one, other) in [(memory.clone(), next.clone()), (next.clone(), memory)] {
        assert_eq!(one.merge(other), next);
    }
}

#[test]
fn a_command_that_has_waited_is_judged_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let fences = open(dir.path()).unwrap();
    fences.obey_reign(reign(1)).unwrap();
    fences.obey(GROUP, fence(1, 5, 2)).unwrap();
    fences.check(GROUP, fence(1, 5, 2)).unwrap();
    fences.obey(GROUP, fence(1, 5, 3)).unwrap();
    assert_eq!(fences.check(GROUP, fence(1, 5, 2)).unwrap_err().field(), Some("generation"));
    fences.obey_reign(reign(2)).unwrap();
    assert_eq!(fences.check(GROUP, fence(1, 5, 3)).unwrap_err().field(), Some("era"));
}

#[test]
fn fences_of_the_first_version_are_read_and_go_on_to_count() {
    let mut bytes = b"\x01\0\0\0\0\0\0\0\x03".to_vec();
    for number in [GROUP.0, 3, 5, 2, 8, 1, 7, 7] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    let dir = tempfile::tempdir().unwrap();
    for copy in COPIES {
        replace_file(&RealDisk, dir.path(), copy, &bytes).unwrap();
    }
    let fences = open(dir.path()).unwrap();
    assert_eq!(fences.reign(), Reign { era: 3, incarnation: UNKNOWN_INCARNATION });
    assert!(fences.obey_reign(reign(2)).is_err());
    assert!(fences.obey(GROUP, fence(3, 5, 2)).is_err(), "whose era it is comes first");
    fences.obey_reign(reign(3)).unwrap();
    assert_eq!(fences.obey(GROUP, fence(3, 5, 1)).unwrap_err().field(), Some("generation"));
    fences.obey(GROUP, fence(3, 5, 2)).unwrap();
    // What an earlier era left fences nothing.
    fences.obey(GroupId(8), fence(3, 1, 1)).unwrap();
}

#[test]
fn what_was_obeyed_survives_and_refuses_what_is_older() {
    let dir = tempfile::tempdir().unwrap();
    let fences = open(dir.path()).unwrap();
    assert_eq!(fences.reign(), Reign::default());
    fences.obey_reign(reign(1)).unwrap();
    fences.obey(GROUP, fence(1, 5, 2)).unwrap();
    fences.obey(GROUP, fence(1, 5, 2)).unwrap();
    fences.obey(GroupId(0), fence(1, 4, 0)).unwrap();
    drop(fences);
    let fences = open(dir.path()).unwrap();
    assert_eq!(fences.reign(), reign(1));
    let refused = fences.obey(GROUP, fence(1, 5, 1)).unwrap_err();
    let text = "group 7 obeys era 1, term 5, generation 2; this command is of era 1, term 5, \
                generation 1";
    assert_eq!(refused.to_string(), text);
    fences.obey(GroupId(0), fence(1, 4, 0)).unwrap();
    fences.obey_reign(reign(2)).unwrap();
    assert!(fences.obey(GROUP, fence(1, 6, 3)).is_err());
}

#[test]
fn one_good_copy_is_enough_the_higher_one_counts_and_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let spoil = |copy: &str| {
        let file = RealDisk.open(&dir.path().join(copy), Open::Write).unwrap();
        file.write_all_at(&[9], 3).unwrap();
    };
    let fences = open(dir.path()).unwrap();
    fences.obey_reign(reign(1)).unwrap();
    fences.obey(GROUP, fence(1, 5, 2)).unwrap();
    drop(fences);
    spoil(COPIES[0]);
    // As after a crash between the two writes.
    let older = begun(1).obey(GROUP, fence(1, 4, 9)).unwrap().unwrap();
    assert_eq!(open(dir.path()).unwrap().memory.into_inner().groups[&GROUP], fence(1, 5, 2));
    replace_file(&RealDisk, dir.path(), COPIES[1], &older.encode()).unwrap();
    assert_eq!(open(dir.path()).unwrap().memory.into_inner().groups[&GROUP], fence(1, 5, 2));
    COPIES.into_iter().for_each(spoil);
    assert!(matches!(open(dir.path()).unwrap_err(), FenceError::Unreadable(_)));
}

#[test]
fn the_layout_is_pinned() {
    let mut memory = begun(3);
    memory.groups.insert(GroupId(258), fence(3, 2, 4));
    let bytes = memory.encode();
    assert_eq!(bytes.len(), FRAME_BYTES + GROUP_BYTES);
    assert_eq!(&bytes[..13], b"\x02\0\0\0\0\0\0\0\x03\0\0\0\x05");
    assert_eq!(&bytes[13..21], b"\0\0\0\0\0\0\x01\x02");
    let numbers = b"\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x04";
    assert_eq!(&bytes[21..45], numbers);
    assert_eq!(Memory::decode(&bytes), Some(memory));
    assert_eq!(Memory::decode(&bytes[..bytes.len() - 1]), None);
}

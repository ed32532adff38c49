//! The format, pinned: these bytes come from an independent implementation of the crate's root
//! text. They change only with the version byte.

use annulus_runtime::Random;
use annulus_types::{GroupId, ReplicaId};
use bytes::Bytes;

use super::model::{id, stream, vote};
use crate::format::batch::{self, Batch, Head, Manifest, Seal};
use crate::format::record::{self, Change, Frames, Record};
use crate::format::{
    BLOCK, BadHeader, HEADER_BYTES, Header, Position, ROOM, SECTOR, Salt, file_name, is_unwritten,
    parse_file_name,
};
use crate::{Damage, LogState, StreamId, Vote};

const HEADER: &str = "414e4e554c57414c010700000000000000efcdab8967452301232222221111111128209048";
const FRONT: &str = concat!(
    "4157423c070000000000000000200000000000000100000006000000000000000050000000000000bc00",
    "000009a557538e000000000000008f1db6aa911e37930100000006000000000000000050000000000000",
    "efbeadde0100000003000000000000000400000000000000010109000000000000000400000000000000",
    "0c0000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "000000000000000000000000000000000000000000000000000000000000000000000109000000000000",
    "0004000000000000000c0000000000000001070000000000000005000000000000000a00000000000000",
    "64627aab3300000007000000000000000300000000000000040000000000000003010900000000000000",
    "040000000000000001d6b93c705b00000007000000000000000300000000000000040000000000000005",
    "01090000000000000004000000000000000c000000000000000108000000000000000500000000000000",
    "0b00000000000000007061796c6f6164",
);
const BACK: &str = concat!(
    "0100000006000000000000000050000000000000efbeadde010000000300000000000000040000000000",
    "00000101090000000000000004000000000000000c000000000000000000000000000000000000000000",
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "00000000000000000000000001090000000000000004000000000000000c000000000000000107000000",
    "0000000005000000000000000a000000000000004157423e070000000000000000200000000000000100",
    "000006000000000000000050000000000000bc00000009a557538e000000000000008f1db6aa59ba62a2",
);
const TAGS: [&str; 8] = [
    "77452381", "76452381", "75452381", "74452381", "73452381", "72452381", "71452381", "70452381",
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header() -> Header {
    Header {
        number: 7,
        salt: Salt::draw(0x0123_4567_89ab_cdef, None),
        former: Some(Salt::draw(0x1111_1111_2222_2222, None)),
    }
}

fn golden_records() -> Vec<Record> {
    let stream = StreamId { group: GroupId(3), replica: ReplicaId(4) };
    let golden_vote = Vote { term: 9, leader: ReplicaId(4), committed: true };
    let change = Change::Entry { id: id(9, 4, 12), prev: Some(id(8, 5, 11)), membership: false };
    let payload = Bytes::from_static(b"payload");
    vec![Record::new(stream, Change::Vote(golden_vote)), Record { stream, change, payload }]
}

fn encode(records: &[Record], header: &Header, offset: u64) -> (Manifest, batch::Encoded) {
    let mut manifest = Manifest::describe(records);
    manifest.seals.push(Seal { segment: 6, end: 20480, checksum: 0xdead_beef });
    for item in &mut manifest.items {
        let (last, membership) = (Some(id(9, 4, 12)), Some(id(7, 5, 10)));
        item.state = LogState { last, membership, ..LogState::default() };
    }
    let mut frames = Frames::of(records);
    frames.stamp(header.number, header.salt);
    let mark = Position { segment: 6, offset: 20480 };
    let encoded = batch::encode(header, offset, mark, &manifest, &frames);
    (manifest, encoded)
}

/// A segment with this batch in it.
fn segment(encoded: &batch::Encoded, offset: u64) -> Vec<u8> {
    let mut data = vec![0; offset as usize];
    data.extend_from_slice(&encoded.bytes);
    data
}

#[test]
fn the_bytes_of_a_header_are_pinned() {
    let block = header().encode();
    assert_eq!(block.len() as u64, BLOCK);
    assert_eq!(hex(&block[..37]), HEADER);
    assert!(block[37..].iter().all(|byte| *byte == 0));
    assert_eq!(Header::decode(&block), Ok(header()));
}

#[test]
fn the_bytes_of_a_batch_are_pinned() {
    let (_, encoded) = encode(&golden_records(), &header(), HEADER_BYTES);
    assert_eq!((encoded.bytes.len() as u64, encoded.checksum), (BLOCK, 0x9337_1e91));
    let sectors: Vec<&[u8]> = encoded.bytes.chunks(SECTOR as usize).collect();
    let tags: Vec<String> = sectors.iter().map(|sector| hex(&sector[ROOM as usize..])).collect();
    assert_eq!(tags, TAGS);
    let content: Vec<u8> =
        sectors.iter().flat_map(|sector| &sector[..ROOM as usize]).copied().collect();
    assert_eq!(hex(&content[..FRONT.len() / 2]), FRONT);
    assert_eq!(hex(&content[content.len() - BACK.len() / 2..]), BACK);
    assert_eq!(crc32fast::hash(&encoded.bytes), 0x3449_7d4b);
}

#[test]
fn another_version_is_told_from_rot() {
    let mut block = header().encode();
    block[8] = 2;
    assert_eq!(Header::decode(&block), Err(BadHeader::Unreadable));
    let crc = crc32fast::hash(&block[..33]);
    block[33..37].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Header::decode(&block), Err(BadHeader::Version(2)));
}

#[test]
fn every_kind_of_record_is_read_back() {
    let some = Some(id(3, 4, 5));
    let damage = Damage { file: file_name(9), offset: 4096, reason: "röt".to_owned() };
    let other = Some(id(2, 4, 4));
    let state = LogState {
        vote: Some(vote(8)),
        committed: some,
        purged: None,
        last: some,
        membership: other,
    };
    let changes = [
        Change::Create,
        Change::Destroy,
        Change::Vote(vote(7)),
        Change::Committed(id(1, 2, 3)),
        Change::Entry { id: id(1, 2, 0), prev: None, membership: true },
        Change::Truncate { after: None, membership: other },
        Change::Truncate { after: some, membership: None },
        Change::Purge { upto: id(1, 2, 3), membership: other },
        Change::Reset { after: id(1, 2, 3), membership: other },
        Change::State(state),
        Change::State(LogState::default()),
        Change::Damaged(damage),
    ];
    let records: Vec<Record> =
        changes.iter().map(|change| Record::new(stream(1), change.clone())).collect();
    let offset = HEADER_BYTES + 3 * BLOCK;
    let (manifest, encoded) = encode(&records, &header(), offset);
    let found = Batch::read(&header(), &segment(&encoded, offset), offset).unwrap();
    assert_eq!((found.manifest, found.checksum), (manifest, encoded.checksum));
    let read: Vec<Change> = found.records.iter().map(|placed| placed.change.clone()).collect();
    assert_eq!(read, changes);
    let places: Vec<_> = found.records.iter().map(|placed| placed.place).collect();
    assert_eq!(places, encoded.places);
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let damage = Damage { file: "é".repeat(1000), offset: 0, reason: String::new() };
    let mut frames = Frames::of(&[Record::new(stream(1), Change::Damaged(damage))]);
    frames.stamp(7, header().salt);
    let found = record::decode(&frames.bytes, 7, header().salt).unwrap();
    let Change::Damaged(read) = found.change else { panic!("{found:?}") };
    assert_eq!(read.file, "é".repeat(512));
}

#[test]
fn any_change_of_any_byte_makes_a_batch_bad() {
    let (_, encoded) = encode(&golden_records(), &header(), HEADER_BYTES);
    let mut data = segment(&encoded, HEADER_BYTES);
    assert!(Batch::read(&header(), &data, HEADER_BYTES).is_some());
    for at in HEADER_BYTES as usize..data.len() {
        data[at] ^= 0x40;
        assert!(Batch::read(&header(), &data, HEADER_BYTES).is_none(), "byte {at}");
        data[at] ^= 0x40;
    }
}

#[test]
fn a_batch_is_nothing_under_another_number_salt_or_offset() {
    let (_, encoded) = encode(&golden_records(), &header(), HEADER_BYTES);
    let data = segment(&encoded, HEADER_BYTES);
    let other_number = Header { number: 8, ..header() };
    let other_salt = Header { salt: Salt::draw(1 << 40, None), ..header() };
    for wrong in [other_number, other_salt] {
        assert!(Batch::read(&wrong, &data, HEADER_BYTES).is_none());
        assert!(Head::last(&wrong, &data, HEADER_BYTES).is_none());
    }
    let moved = segment(&encoded, HEADER_BYTES + BLOCK);
    assert!(Batch::read(&header(), &moved, HEADER_BYTES + BLOCK).is_none());
    assert!(Head::last(&header(), &moved, HEADER_BYTES + BLOCK).is_none());
}

#[test]
fn either_end_names_whom_it_concerns() {
    let payload = Bytes::from(vec![9; 20_000]);
    let change = Change::Entry { id: id(9, 4, 12), prev: None, membership: true };
    let (manifest, encoded) =
        encode(&[Record { stream: stream(5), change, payload }], &header(), HEADER_BYTES);
    let data = segment(&encoded, HEADER_BYTES);
    let last_block = data.len() - BLOCK as usize;

    let mut front_gone = data.clone();
    front_gone[HEADER_BYTES as usize..last_block].fill(0xaa);
    assert!(Head::first(&header(), &front_gone, HEADER_BYTES).is_none());
    let head = Head::last(&header(), &front_gone, last_block as u64).unwrap();
    assert_eq!((head.offset, head.end()), (HEADER_BYTES, data.len() as u64));
    assert_eq!(head.manifest(&header(), &front_gone), Some(manifest.clone()));

    let mut back_gone = data;
    back_gone[last_block..].fill(0xaa);
    let head = Head::first(&header(), &back_gone, HEADER_BYTES).unwrap();
    assert_eq!(head.manifest(&header(), &back_gone), Some(manifest));
}

#[test]
fn tags_tell_lives_apart_in_every_sector() {
    let random = Random::seeded(3);
    for _ in 0..50 {
        let dice = random.u64();
        let former = Salt::draw(dice, None);
        // Also when the dice fall the same way twice.
        for dice in [random.u64(), dice] {
            let salt = Salt::draw(dice, Some(former));
            let header = Header { number: 7, salt, former: Some(former) };
            let (_, written) = encode(&golden_records(), &header, HEADER_BYTES);
            for (nth, sector) in written.bytes.chunks(SECTOR as usize).enumerate() {
                let offset = HEADER_BYTES + nth as u64 * SECTOR;
                assert!(!is_unwritten(sector, offset, Some(former)));
                assert!(is_unwritten(sector, offset, Some(salt)));
                assert!(is_unwritten(&[0; 512], offset, Some(former)));
            }
        }
    }
    assert!(!is_unwritten(&[1; 512], 0, None));
}

#[test]
fn file_names_sort_as_numbers() {
    assert_eq!(file_name(12), "00000000000000000012.wal");
    assert_eq!(parse_file_name(&file_name(u64::MAX)), Some(u64::MAX));
    for name in ["12.wal", "00000000000000000012.wa", "+0000000000000000012.wal", "LOCK", ""] {
        assert_eq!(parse_file_name(name), None, "{name}");
    }
}

#[test]
fn noise_is_nothing() {
    let random = Random::seeded(9);
    for _ in 0..50 {
        let noise: Vec<u8> = (0..4 * BLOCK).map(|_| random.u64() as u8).collect();
        assert!(Batch::read(&header(), &noise, HEADER_BYTES).is_none());
        assert!(record::decode(&noise, 7, header().salt).is_none());
        assert_eq!(Header::decode(&noise[..BLOCK as usize]), Err(BadHeader::Unreadable));
    }
}

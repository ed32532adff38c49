//! What the bytes on the disk mean: which batches count, which are torn, which are damaged, and
//! what the log holds therefore. Pure: bytes in, an index and a [`Resume`] out.
//!
//! Segments are looked at from the newest to the oldest ([`Survey::add`]), because a batch is
//! judged by what later ones say about it: their durable marks (L3) and their seals (L2). Then all
//! that counts is replayed from the oldest to the newest ([`Survey::finish`]).
//!
//! Invariants:
//! - L2: nothing at or behind a seal counts; a file without a header is ignored only when nothing
//!   says that it held something and it provably never had a header; what lies above the highest
//!   durable mark is handed out to be written again;
//! - L3: a batch is cut off only when no durable mark covers it and a sector proves that it was
//!   never written whole; with it goes all that follows in its segment;
//! - L4: everything else that fails a check is damage, of the replicas that a readable manifest
//!   names, else of all; the hard state in a readable manifest, votes above all, is adopted.
//!
//! On failure: damage is a result, not an error; it stops the replicas that it concerns. Only a
//! header of an unknown version stops the node.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::batch::{Batch, Head, Manifest, Seal};
use crate::format::record::Change;
use crate::format::{
    BLOCK, BadHeader, HEADER_BYTES, Header, Place, Position, SECTOR, file_name, is_unwritten, slice,
};
use crate::index::Index;
use crate::ledger::Ledger;
use crate::weaken::{Weaken, Weakened};
use crate::{Damage, StreamId};

/// A stretch of a segment.
#[derive(Debug)]
enum Part {
    Whole(Batch),
    Bad(Bad),
}

/// A stretch that does not hold a whole batch: the unwritten rest of a segment, a torn batch or a
/// damaged one.
#[derive(Debug)]
struct Bad {
    offset: u64,
    end: u64,
    mark: Option<Position>,
    manifest: Option<Manifest>,
    /// Whether a sector proves that the batch was never written whole.
    has_unwritten: bool,
}

impl Part {
    fn offset(&self) -> u64 {
        match self {
            Self::Whole(batch) => batch.head.offset,
            Self::Bad(bad) => bad.offset,
        }
    }

    fn end(&self) -> u64 {
        match self {
            Self::Whole(batch) => batch.head.end(),
            Self::Bad(bad) => bad.end,
        }
    }

    fn mark(&self) -> Option<Position> {
        match self {
            Self::Whole(batch) => Some(batch.head.mark),
            Self::Bad(bad) => bad.mark,
        }
    }

    fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Whole(batch) => Some(&batch.manifest),
            Self::Bad(bad) => bad.manifest.as_ref(),
        }
    }
}

/// Divides a segment up to `until` into parts. All bytes up to there are in `data`.
fn scan(header: &Header, data: &[u8], until: u64) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = HEADER_BYTES;
    while at < until {
        let part = match Batch::read(header, data, at) {
            Some(batch) if batch.head.end() <= until => Part::Whole(batch),
            _ => Part::Bad(examine(header, data, at, until)),
        };
        at = part.end();
        parts.push(part);
    }
    parts
}

/// Finds out what there is to know about a stretch whose batch is not whole.
fn examine(header: &Header, data: &[u8], at: u64, until: u64) -> Bad {
    let blocks = move || (at..until).step_by(BLOCK as usize);
    let last_heads = move || blocks().filter_map(move |block| Head::last(header, data, block));
    let head = Head::first(header, data, at)
        .or_else(|| last_heads().find(|head| head.offset == at))
        .filter(|head| head.end() > at && head.end() <= until);
    // Without an extent the stretch reaches to the next batch of which either end is readable.
    let next = || {
        let first = blocks().skip(1).find(|block| Head::first(header, data, *block).is_some());
        let last = last_heads().map(|head| head.offset).find(|offset| *offset > at);
        first.into_iter().chain(last).min().unwrap_or(until)
    };
    let end = head.map_or_else(next, |head| head.end());
    let proof_end = if head.is_some() { end } else { at + BLOCK };
    let has_unwritten = (at..proof_end).step_by(SECTOR as usize).any(|offset| {
        slice(data, offset, SECTOR).is_none_or(|sector| is_unwritten(sector, offset, header.former))
    });
    Bad {
        offset: at,
        end,
        mark: head.map(|head| head.mark),
        manifest: head.and_then(|head| head.manifest(header, data)),
        has_unwritten,
    }
}

/// A segment that counts.
#[derive(Debug)]
struct Segment {
    header: Header,
    parts: Vec<Part>,
}

/// What the names and headers of segment files say.
enum Birth {
    Born(Header),
    Unborn,
    Unreadable,
}

fn birth(number: u64, data: &[u8]) -> Result<Birth, UnknownVersion> {
    let mut unborn = true;
    for copy in 0..HEADER_BYTES / BLOCK {
        let start = (copy * BLOCK) as usize;
        let mut block: Vec<u8> = data.iter().skip(start).take(BLOCK as usize).copied().collect();
        // A file may be shorter when the power went while it was made.
        block.resize(BLOCK as usize, 0);
        match Header::decode(&block) {
            Ok(header) if header.number == number => return Ok(Birth::Born(header)),
            Ok(header) if header.number < number => {}
            Err(BadHeader::Version(version)) => {
                return Err(UnknownVersion { file: file_name(number), version });
            }
            Ok(_) | Err(BadHeader::Unreadable) => {
                unborn &= block.iter().all(|byte| *byte == 0);
            }
        }
    }
    Ok(if unborn { Birth::Unborn } else { Birth::Unreadable })
}

/// A segment of a later program.
#[derive(Debug, thiserror::Error)]
#[error("{file} has format version {version}, which this program does not know")]
pub(crate) struct UnknownVersion {
    file: String,
    version: u8,
}

/// A record that is to be written again, and where its payload is, if it has one.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) stream: StreamId,
    pub(crate) change: Change,
    pub(crate) payload: Option<Place>,
}

/// A segment that counts for nothing once the next one is durable. It must then go before any newer
/// one does: what says that it counts for nothing lies there.
#[derive(Debug)]
pub(crate) struct Void {
    pub(crate) number: u64,
    pub(crate) has_damage: bool,
}

/// How the writer goes on.
#[derive(Debug)]
pub(crate) struct Resume {
    /// The hard state at the durable mark; `again` leads from there to what the index holds.
    pub(crate) ledger: Ledger,
    pub(crate) again: Vec<Again>,
    /// Up to here the log is known to be durable.
    pub(crate) mark: Position,
    /// What the next segment must seal.
    pub(crate) seals: Vec<Seal>,
    /// Where the content of each segment that counts ends.
    pub(crate) ends: BTreeMap<u64, u64>,
    pub(crate) void: Vec<Void>,
    /// The highest number ever used.
    pub(crate) newest: u64,
    /// Where the log ends (see [`crate::Wal::recovered_end`]).
    pub(crate) end: Position,
}

/// Gathers what the segments say, newest first.
#[derive(Debug)]
pub(crate) struct Survey {
    weakened: Weakened,
    segments: Vec<Segment>,
    seals: BTreeMap<u64, Seal>,
    /// Segments that hold something, as a durable mark or a seal says.
    named: BTreeSet<u64>,
    /// The highest durable mark so far.
    mark: Position,
    /// Files that were never segments, and segments that count for nothing as a seal says.
    void: Vec<u64>,
    newest: u64,
    /// Where the newest segment ends that counts or has lost its header.
    end: Position,
    /// Damage that may concern any replica born up to the segment with this number.
    lost: Vec<(u64, Damage)>,
}

impl Survey {
    pub(crate) fn new(weakened: Weakened) -> Self {
        Self {
            weakened,
            segments: Vec::new(),
            seals: BTreeMap::new(),
            named: BTreeSet::new(),
            mark: Position::default(),
            void: Vec::new(),
            newest: 0,
            end: Position::default(),
            lost: Vec::new(),
        }
    }

    /// Looks at one file; its header if it is a segment that counts. Numbers descend.
    ///
    /// # Errors
    /// When the file was written by a later program.
    pub(crate) fn add(
        &mut self,
        number: u64,
        mut data: Vec<u8>,
    ) -> Result<Option<Header>, UnknownVersion> {
        self.newest = self.newest.max(number);
        let seal = self.seals.get(&number).copied();
        if seal.is_some_and(|seal| seal.is_void()) {
            self.void.push(number);
            return Ok(None);
        }
        let header = match birth(number, &data)? {
            Birth::Born(header) => header,
            Birth::Unborn if !self.named.contains(&number) => {
                self.void.push(number);
                return Ok(None);
            }
            Birth::Unborn | Birth::Unreadable => {
                self.lose(number, 0, "both copies of the segment's header are unreadable");
                self.reach(number, data.len() as u64);
                return Ok(None);
            }
        };

        let until = seal.map_or(data.len() as u64 / BLOCK * BLOCK, |seal| seal.end);
        if data.len() < until as usize {
            // The missing bytes fail every check, and the seal covers them.
            data.resize(until as usize, 0);
        }
        let mut parts = scan(&header, &data, until);
        if let Some(seal) = seal {
            self.compare(&seal, &parts);
        }
        self.cut_torn(number, seal, &mut parts);
        self.reach(number, parts.last().map_or(HEADER_BYTES, Part::end));
        for part in &parts {
            self.named.extend(part.mark().map(|mark| mark.segment));
            for seal in part.manifest().into_iter().flat_map(|manifest| &manifest.seals) {
                if !seal.is_void() {
                    self.named.insert(seal.segment);
                }
                self.seals.entry(seal.segment).or_insert(*seal);
            }
        }
        self.segments.push(Segment { header, parts });
        Ok(Some(header))
    }

    /// Drops the first torn part and all that follows it (L3).
    fn cut_torn(&mut self, number: u64, seal: Option<Seal>, parts: &mut Vec<Part>) {
        // What is sealed was durable before the seal was written. That is no mark of the log: the
        // batch with the seal may itself lie above the highest one.
        let sealed = seal.map_or(0, |seal| seal.end);
        let mut keep = parts.len();
        for (nth, part) in parts.iter().enumerate().rev() {
            if let Part::Bad(bad) = part {
                let position = Position { segment: number, offset: bad.offset };
                let covered = (self.mark > position || sealed > bad.offset)
                    && !self.weakened.is(Weaken::IgnoreMarks);
                let proved = bad.has_unwritten || self.weakened.is(Weaken::CutWithoutProof);
                let torn = !covered && proved;
                if torn || self.weakened.is(Weaken::CutAnyBadBatch) {
                    keep = nth;
                }
            }
            self.mark = self.mark.max(part.mark().unwrap_or_default());
        }
        parts.truncate(keep);
    }

    /// Checks a seal against what it seals.
    fn compare(&mut self, seal: &Seal, parts: &[Part]) {
        if let Some(Part::Whole(batch)) = parts.last()
            && batch.checksum != seal.checksum
        {
            self.lose(seal.segment, batch.head.offset, "the last batch is not the sealed one");
        }
    }

    /// The log goes at least to here.
    fn reach(&mut self, segment: u64, offset: u64) {
        self.end = self.end.max(Position { segment, offset });
    }

    fn lose(&mut self, number: u64, offset: u64, reason: &str) {
        let damage = Damage { file: file_name(number), offset, reason: reason.to_owned() };
        self.lost.push((number, damage));
    }

    /// Replays all that counts into `index`, which is empty.
    pub(crate) fn finish(mut self, index: Index) -> (Index, Resume) {
        self.segments.reverse();
        if let Some(oldest) = self.segments.first().map(|segment| segment.header.number) {
            // Segments are reclaimed oldest first: none may be missing in between.
            let born: BTreeSet<u64> = self.segments.iter().map(|s| s.header.number).collect();
            let missing: Vec<u64> = self.named.range(oldest..).copied().collect();
            for number in missing.into_iter().filter(|number| !born.contains(number)) {
                self.lose(number, 0, "the segment is missing");
            }
        }

        if self.weakened.is(Weaken::BelievePageCache)
            && let Some(Segment { header, parts }) = self.segments.last()
        {
            let end = parts.last().map_or(HEADER_BYTES, Part::end);
            self.mark = Position { segment: header.number, offset: end };
        }

        let mut replay =
            Replay { index, at_mark: None, again: Vec::new(), weakened: self.weakened };
        let mut ends = BTreeMap::new();
        self.lost.sort_by_key(|(number, _)| *number);
        let mut lost = self.lost.iter().peekable();
        for Segment { header, parts } in &self.segments {
            while let Some((_, damage)) = lost.next_if(|(number, _)| *number < header.number) {
                replay.damage_all(damage);
            }
            for part in parts {
                let position = Position { segment: header.number, offset: part.offset() };
                if position >= self.mark {
                    replay.pass_mark();
                }
                replay.part(header.number, part);
            }
            let sealed = self.seals.get(&header.number).map(|seal| seal.end);
            let read = parts.last().map_or(HEADER_BYTES, Part::end);
            ends.insert(header.number, sealed.unwrap_or(read));
        }
        replay.pass_mark();
        for (_, damage) in lost {
            replay.damage_all(damage);
        }
        let oldest = self.segments.first().map_or(0, |segment| segment.header.number);
        replay.find_gaps(&file_name(oldest));

        let seals = self.seals_from_mark();
        ends.extend(seals.iter().map(|seal| (seal.segment, seal.end)));
        let void = seals.iter().filter(|seal| seal.is_void()).map(|seal| seal.segment);
        let void: Vec<Void> =
            void.map(|number| Void { number, has_damage: self.has_damage(number) }).collect();
        let resume = Resume {
            ledger: replay.at_mark.unwrap_or_default(),
            again: replay.again,
            mark: self.mark,
            seals,
            ends,
            void,
            newest: self.newest.max(self.named.last().copied().unwrap_or(0)),
            end: self.end,
        };
        (replay.index, resume)
    }

    fn has_damage(&self, number: u64) -> bool {
        let mut segments = self.segments.iter().filter(|s| s.header.number == number);
        segments.any(|s| s.parts.iter().any(|part| matches!(part, Part::Bad(_))))
    }

    /// The segment of the mark ends there; what newer ones hold is written again. Seals in batches
    /// above the mark are thereby repeated: those batches sealed what is at or above their own
    /// marks, and none of these is higher.
    fn seals_from_mark(&self) -> Vec<Seal> {
        let newer = self.segments.iter().filter(|s| s.header.number >= self.mark.segment);
        let seal = |segment: &Segment| {
            let number = segment.header.number;
            let end = if number == self.mark.segment { self.mark.offset } else { HEADER_BYTES };
            let last = segment.parts.iter().find_map(|part| match part {
                Part::Whole(batch) if batch.head.end() == end => Some(batch.checksum),
                _ => None,
            });
            Seal { segment: number, end, checksum: last.unwrap_or(0) }
        };
        let void = self.void.iter().map(|number| Seal::void(*number));
        newer.map(seal).chain(void).collect()
    }
}

/// Folds parts into the index, oldest first.
struct Replay {
    index: Index,
    /// The hard state where the durable mark was passed.
    at_mark: Option<Ledger>,
    again: Vec<Again>,
    weakened: Weakened,
}

impl Replay {
    fn pass_mark(&mut self) {
        if self.at_mark.is_none() {
            self.at_mark = Some(self.index.ledger.clone());
        }
    }

    fn part(&mut self, number: u64, part: &Part) {
        let spot =
            |reason: String| Damage { file: file_name(number), offset: part.offset(), reason };
        match part {
            Part::Whole(batch) => {
                for record in &batch.records {
                    let applied = self.apply(record.stream, &record.change, Some(record.place));
                    if let Err(reason) = applied {
                        self.damage(record.stream, spot(reason));
                    }
                }
            }
            Part::Bad(Bad { manifest: Some(manifest), .. }) => {
                self.named(manifest, &spot("a batch fails its check".to_owned()));
            }
            Part::Bad(_) => {
                self.damage_all(&spot("a batch and its manifests are unreadable".to_owned()));
            }
        }
    }

    /// A damaged batch that still tells whom it concerns (L4).
    fn named(&mut self, manifest: &Manifest, damage: &Damage) {
        for item in &manifest.items {
            if self.index.ledger.tombstones.contains(&item.stream) {
                continue;
            }
            if item.vital {
                self.damage(item.stream, damage.clone());
            }
            if item.stream == StreamId::NODE || self.weakened.is(Weaken::IgnoreManifests) {
                continue;
            }
            // Of a damaged log, only the vote is taken over.
            let state = Change::State(item.state.clone());
            if let Err(reason) = self.apply(item.stream, &state, None) {
                self.damage(item.stream, Damage { reason, ..damage.clone() });
                // Cannot fail: the log is damaged now.
                let _ = self.apply(item.stream, &state, None);
            }
        }
    }

    /// Damage that may concern any replica that was born so far, also ones that nobody knows.
    fn damage_all(&mut self, damage: &Damage) {
        let known: Vec<StreamId> = self.index.ledger.streams.keys().copied().collect();
        for stream in known.into_iter().chain([StreamId::NODE]) {
            self.damage(stream, damage.clone());
        }
    }

    fn damage(&mut self, stream: StreamId, damage: Damage) {
        if !self.index.ledger.damage.contains_key(&stream) {
            let Damage { file, offset, reason } = &damage;
            tracing::error!(%stream, %file, offset, %reason, "the log is damaged");
        }
        // Cannot fail: damage fits any state.
        let _ = self.apply(stream, &Change::Damaged(damage), None);
    }

    fn apply(
        &mut self,
        stream: StreamId,
        change: &Change,
        place: Option<Place>,
    ) -> Result<(), String> {
        self.index.apply(stream, change, None, place)?;
        let ignored = self.index.ledger.damage.contains_key(&stream)
            && matches!(change, Change::Entry { .. });
        if self.at_mark.is_some() && !ignored {
            let payload = place.filter(|_| matches!(change, Change::Entry { .. }));
            self.again.push(Again { stream, change: change.clone(), payload });
        }
        Ok(())
    }

    /// Entries that are missing at the front can be told only when all purges have been seen.
    fn find_gaps(&mut self, oldest: &str) {
        for (stream, reason) in self.index.gaps() {
            self.damage(stream, Damage { file: oldest.to_owned(), offset: 0, reason });
        }
    }
}

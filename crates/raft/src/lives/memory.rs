//! The memory itself: what is remembered of each node, how a life that is told is judged by it, and the
//! bytes of its file. Pure but for [`Memory::read`]; the parent has the rules (N1), the waits and the writes.
//!
//! # The file
//!
//! ```text
//! file `peers` in the data folder, numbers big-endian:
//!   version u8 = 1
//!   | per node, by id: node u32 | admitted incarnation u64, 0: not told yet
//!                      | count u8 | so many former incarnations u64 each, in the order of their end
//!                      | heard u8: 0 nothing, 1 a start, 2 a start of a dead folder; unless 0:
//!                        | incarnation u64 | boot counter u64 | boot id u64 | segment u64 | offset u64
//!   | crc32 of all before u32
//! ```
//!
//! Segment and offset are the highest position that the start told. A dead folder is the fourth case
//! above. Version and checksum stay where they are in every version.

use std::cmp::Ordering as Order;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use annulus_proto::v1;
use annulus_runtime::Disk;
use annulus_runtime::disk::read_file;
use annulus_types::NodeId;
use annulus_wal::Position;
use bytes::BufMut as _;

use crate::host::HostError;

pub(super) const FILE: &str = "peers";
pub(super) const VERSION: u8 = 1;
/// Former incarnations of a node that are remembered; of more than these the last ones.
pub(super) const FORMER_MOST: usize = 64;
/// Of one node in the file.
const NODE_BYTES_MOST: usize = 4 + 8 + 1 + FORMER_MOST * 8 + 1 + 5 * 8;
/// Nodes that are remembered. A bound on memory and file, far above what one cluster has.
pub(super) const NODES_MOST: usize = 4096;
/// Version, nodes, checksum.
pub(super) const FILE_BYTES_MOST: usize = 1 + NODES_MOST * NODE_BYTES_MOST + 4;

/// What a node tells of its data folder and of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// Of the folder, drawn when it was made.
    pub(crate) incarnation: u64,
    /// Starts of the folder so far.
    pub(crate) boot_counter: u64,
    /// Random, of the present start.
    pub(crate) boot_id: u64,
    /// Up to here its log is durable.
    pub(crate) position: Position,
    /// Where its log ended when this start read it.
    pub(crate) recovered: Position,
}

impl Life {
    /// What a ping tells that came in a frame of this incarnation.
    pub(crate) fn told(incarnation: u64, ping: &v1::Ping) -> Self {
        let v1::Ping { boot_counter, boot_id, .. } = *ping;
        let position = |at: Option<&v1::LogPosition>| {
            at.map_or_else(Position::default, |at| Position {
                segment: at.segment,
                offset: at.offset,
            })
        };
        Self {
            incarnation,
            boot_counter,
            boot_id,
            position: position(ping.position.as_ref()),
            recovered: position(ping.recovered.as_ref()),
        }
    }
}

/// What is remembered of the newest start of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(super) incarnation: u64,
    pub(super) boot_counter: u64,
    pub(super) boot_id: u64,
    /// The highest that this start told.
    pub(super) position: Position,
    /// No start of the folder is ever heard again.
    pub(super) is_dead: bool,
}

impl Known {
    pub(super) fn begin(told: Life) -> Self {
        let Life { incarnation, boot_counter, boot_id, position, .. } = told;
        Self { incarnation, boot_counter, boot_id, position, is_dead: false }
    }

    fn is_start_of(&self, told: &Life) -> bool {
        let start = (told.incarnation, told.boot_counter, told.boot_id);
        start == (self.incarnation, self.boot_counter, self.boot_id)
    }
}

/// What is remembered of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// The incarnation that the manager admits, once it was told; the only one that is heard then.
    pub(super) admitted: Option<u64>,
    /// Those that were admitted before, in the order in which they were given up.
    pub(super) former: Vec<u64>,
    /// What was heard, of the admitted incarnation if there is one.
    pub(super) known: Option<Known>,
}

/// For people.
fn place(Position { segment, offset }: Position) -> String {
    format!("segment {segment}, byte {offset}")
}

/// What is made of a life that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing new.
    Known,
    /// It is remembered now. Vital: a start that was not known, not only a higher position.
    Newer { vital: bool },
    /// The log went back while the process ran. It is remembered now that the folder is dead.
    WentBack { reason: String },
    /// It contradicts what is remembered. Dead: no start of this folder can ever be heard again.
    Refused { reason: String, dead: bool },
}

/// The lives that were told, by node. Knows no disk and no time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory(pub(super) BTreeMap<NodeId, Past>);

fn take_u8(rows: &mut &[u8]) -> Option<u8> {
    let (number, rest) = rows.split_first()?;
    *rows = rest;
    Some(*number)
}

fn take_u32(rows: &mut &[u8]) -> Option<u32> {
    let (number, rest) = rows.split_first_chunk::<4>()?;
    *rows = rest;
    Some(u32::from_be_bytes(*number))
}

fn take_u64(rows: &mut &[u8]) -> Option<u64> {
    let (number, rest) = rows.split_first_chunk::<8>()?;
    *rows = rest;
    Some(u64::from_be_bytes(*number))
}

impl Past {
    /// Why an incarnation is not heard, whatever it tells, and whether it never will be.
    fn keeps_out(&self, node: NodeId, incarnation: u64) -> Option<(String, bool)> {
        if self.former.contains(&incarnation) {
            let reason = format!(
                "node {node} goes on with another data folder, for which {incarnation:016x} was given up"
            );
            return Some((reason, true));
        }
        let admitted = self.admitted.filter(|admitted| *admitted != incarnation)?;
        let reason = format!(
            "node {node} is admitted with data folder {admitted:016x}, not with {incarnation:016x}"
        );
        Some((reason, false))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.admitted.unwrap_or(0));
        // No more than `FORMER_MOST`.
        out.put_u8(u8::try_from(self.former.len()).unwrap_or(u8::MAX));
        for former in &self.former {
            out.put_u64(*former);
        }
        let Some(known) = &self.known else { return out.put_u8(0) };
        out.put_u8(1 + u8::from(known.is_dead));
        out.put_u64(known.incarnation);
        out.put_u64(known.boot_counter);
        out.put_u64(known.boot_id);
        out.put_u64(known.position.segment);
        out.put_u64(known.position.offset);
    }

    fn take(rows: &mut &[u8]) -> Option<Self> {
        let admitted = Some(take_u64(rows)?).filter(|admitted| *admitted != 0);
        let count = usize::from(take_u8(rows)?);
        if count > FORMER_MOST {
            return None;
        }
        let mut former = Vec::with_capacity(count);
        for _ in 0..count {
            former.push(take_u64(rows)?);
        }
        let is_dead = match take_u8(rows)? {
            0 => return Some(Self { admitted, former, known: None }),
            1 => false,
            2 => true,
            _ => return None,
        };
        let known = Known {
            incarnation: take_u64(rows)?,
            boot_counter: take_u64(rows)?,
            boot_id: take_u64(rows)?,
            position: Position { segment: take_u64(rows)?, offset: take_u64(rows)? },
            is_dead,
        };
        Some(Self { admitted, former, known: Some(known) })
    }
}

/// Why bytes are no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undecoded {
    Damaged,
    /// Intact, and not of this program.
    Version(u8),
}

impl Memory {
    /// For an answer, `asked` is what was remembered of the node when the question left.
    pub(super) fn judge(&mut self, node: NodeId, told: Life, asked: Option<Known>) -> Verdict {
        if self.is_full_for(node) {
            let reason = format!("{NODES_MOST} other nodes are remembered already");
            return Verdict::Refused { reason, dead: false };
        }
        let past = self.0.entry(node).or_default();
        if let Some((reason, dead)) = past.keeps_out(node, told.incarnation) {
            return Verdict::Refused { reason, dead };
        }
        let dead = |reason| Verdict::Refused { reason, dead: true };
        let Some(known) = &mut past.known else {
            past.known = Some(Known::begin(told));
            return Verdict::Newer { vital: true };
        };
        let start = told.boot_counter;
        if told.incarnation != known.incarnation {
            let reason = format!(
                "node {node} is known with data folder {:016x}, not with {:016x}",
                known.incarnation, told.incarnation
            );
            return Verdict::Refused { reason, dead: false };
        }
        if known.is_dead {
            let start = known.boot_counter;
            return dead(format!("the log of this data folder went back during its start {start}"));
        }
        match start.cmp(&known.boot_counter) {
            Order::Less => {
                let seen = known.boot_counter;
                dead(format!("this is start {start} of a data folder whose start {seen} was seen"))
            }
            Order::Equal if told.boot_id != known.boot_id => {
                dead(format!("another process was seen at start {start} of this data folder"))
            }
            Order::Equal => {
                if let Some(asked) = asked
                    && asked.is_start_of(&told)
                    && told.position < asked.position
                {
                    known.is_dead = true;
                    let reason = format!(
                        "start {start} of the data folder says that its log is durable up to {}, and \
                         has said before that it is up to {}",
                        place(told.position),
                        place(asked.position)
                    );
                    return Verdict::WentBack { reason };
                }
                if told.position <= known.position {
                    return Verdict::Known;
                }
                known.position = told.position;
                Verdict::Newer { vital: false }
            }
            Order::Greater if told.recovered < known.position => dead(format!(
                "start {start} found the log of the data folder to end at {}, and an earlier start said \
                 that it was durable up to {}",
                place(told.recovered),
                place(known.position)
            )),
            Order::Greater => {
                *known = Known::begin(told);
                Verdict::Newer { vital: true }
            }
        }
    }

    /// Whether there is no room for one more node, and this would be one.
    fn is_full_for(&self, node: NodeId) -> bool {
        self.0.len() >= NODES_MOST && !self.0.contains_key(&node)
    }

    /// Takes what the manager says of a node; returns whether that is new. A former incarnation does not
    /// come back, whoever says so.
    pub(super) fn admit(&mut self, node: NodeId, incarnation: u64) -> bool {
        // 0: the manager does not know which.
        if incarnation == 0 || self.is_full_for(node) {
            return false;
        }
        let past = self.0.entry(node).or_default();
        if past.admitted == Some(incarnation) || past.former.contains(&incarnation) {
            return false;
        }
        if let Some(former) = past.admitted.replace(incarnation) {
            if past.former.len() >= FORMER_MOST {
                past.former.remove(0);
            }
            past.former.push(former);
        }
        past.known = past.known.filter(|known| known.incarnation == incarnation);
        true
    }

    /// Whether the manager admits another incarnation of the node than this one.
    pub(super) fn is_replaced(&self, node: NodeId, incarnation: u64) -> bool {
        let admitted = self.0.get(&node).and_then(|past| past.admitted);
        admitted.is_some_and(|admitted| admitted != incarnation)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        for (node, past) in &self.0 {
            out.put_u32(node.0);
            past.encode(&mut out);
        }
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Undecoded> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Undecoded::Damaged)?;
        if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
            return Err(Undecoded::Damaged);
        }
        let (version, mut nodes) = body.split_first().ok_or(Undecoded::Damaged)?;
        if *version != VERSION {
            return Err(Undecoded::Version(*version));
        }
        let mut memory = Self::default();
        while !nodes.is_empty() {
            let node = NodeId(take_u32(&mut nodes).ok_or(Undecoded::Damaged)?);
            let past = Past::take(&mut nodes).ok_or(Undecoded::Damaged)?;
            memory.0.insert(node, past);
        }
        Ok(memory)
    }

    /// What an earlier process of this node has written.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Self, HostError> {
        let path = dir.join(FILE);
        let file = || path.display().to_string();
        let unread =
            |error: io::Error| HostError::Peers { file: file(), reason: error.to_string() };
        if !disk.exists(&path).map_err(unread)? {
            return Ok(Self::default());
        }
        let bytes = read_file(disk, &path, FILE_BYTES_MOST as u64).map_err(unread)?;
        match Self::decode(&bytes) {
            Ok(memory) => Ok(memory),
            Err(Undecoded::Version(version)) => {
                let reason = format!("its format has version {version}, which is unknown here");
                Err(HostError::Peers { file: file(), reason })
            }
            Err(Undecoded::Damaged) => {
                tracing::warn!(
                    file = %path.display(),
                    "what was remembered of other nodes is damaged and lost; other nodes still remember"
                );
                Ok(Self::default())
            }
        }
    }
}

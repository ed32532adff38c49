//! Who a data folder is: cluster, node, life (incarnation), starts (N1).
//!
//! ```text
//! files identity.0, identity.1 (the same twice; one good copy is enough):
//!   version u8 = 1 | cluster 16 bytes (zeros: unborn) | node u32 | incarnation u64
//!   | boot counter u64 | boot id u64 | crc32 of all before u32
//! file dead (only in a folder that a peer has refused for good): why, text
//! ```
//!
//! Invariants: the folder is locked for the life of the process; the boot counter is raised, a boot id
//! is drawn, and both are synced in both copies before anybody is told them; a folder that belongs to a
//! cluster never joins another, and a folder of one node id never serves under another; a folder that
//! is dead is never opened again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_runtime::disk::{read_file, replace_file};
use annulus_runtime::{Disk, DiskLock, Env};
use annulus_types::{ClusterId, NodeId};

const COPIES: [&str; 2] = ["identity.0", "identity.1"];
const VERSION: u8 = 1;
const BYTES: usize = 49;
/// Its presence says it; what is in it is for people.
const DEAD: &str = "dead";
/// Of the file `dead`, bytes that are read.
const REASON_BYTES: u64 = 64 * 1024;

/// What the files say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; unborn before it has one.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The life of the folder, drawn when it was made.
    pub incarnation: u64,
    /// Starts so far.
    pub boot_counter: u64,
    /// Random, drawn at the last start.
    pub boot_id: u64,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// It belongs to another node.
    #[error("{folder} belongs to node {actual}, not to node {asked}")]
    OtherNode {
        /// The folder.
        folder: PathBuf,
        /// Its node.
        actual: NodeId,
        /// The node asked for.
        asked: NodeId,
    },
    /// It belongs to another cluster.
    #[error("this node belongs to cluster {0}")]
    OtherCluster(ClusterId),
    /// Both copies are unreadable: the folder's promises cannot be known.
    #[error("{0}: neither copy of the identity is readable")]
    Unreadable(PathBuf),
    /// A peer has refused it for good.
    #[error(
        "{folder} is dead: a peer refused this copy of the data folder, because it is older than what \
         the peer has seen of this node, or is a second one ({reason}). It may have forgotten votes and \
         acknowledged writes. Never start it again, also not from a copy; add the node anew, with an \
         empty folder"
    )]
    Dead {
        /// The folder.
        folder: PathBuf,
        /// What the peer said.
        reason: String,
    },
    /// The disk said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Identity {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_be_bytes());
        out.extend_from_slice(&self.incarnation.to_be_bytes());
        out.extend_from_slice(&self.boot_counter.to_be_bytes());
        out.extend_from_slice(&self.boot_id.to_be_bytes());
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let (body, crc) = bytes.split_at(BYTES - 4);
        if body[0] != VERSION || crc32fast::hash(body).to_be_bytes() != *crc {
            return None;
        }
        Some(Self {
            cluster: ClusterId(body[1..17].try_into().ok()?),
            node: NodeId(u32::from_be_bytes(body[17..21].try_into().ok()?)),
            incarnation: u64::from_be_bytes(body[21..29].try_into().ok()?),
            boot_counter: u64::from_be_bytes(body[29..37].try_into().ok()?),
            boot_id: u64::from_be_bytes(body[37..45].try_into().ok()?),
        })
    }

    /// The newest readable copy in `dir`; `None` in a new folder.
    ///
    /// # Errors
    /// When copies exist and none is readable.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let mut found = false;
        let mut newest: Option<Self> = None;
        for copy in COPIES {
            let path = dir.join(copy);
            if !disk.exists(&path)? {
                continue;
            }
            found = true;
            let Some(read) = read_file(disk, &path, 4096).ok().and_then(|b| Self::decode(&b))
            else {
                continue;
            };
            // A crash between the two writes leaves one behind: the later one counts.
            let later = |held: &Self| {
                (read.boot_counter, !read.cluster.is_unborn())
                    > (held.boot_counter, !held.cluster.is_unborn())
            };
            if newest.as_ref().is_none_or(later) {
                newest = Some(read);
            }
        }
        match newest {
            None if found => Err(IdentityError::Unreadable(dir.to_owned())),
            newest => Ok(newest),
        }
    }

    fn store(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let bytes = self.encode();
        COPIES.iter().try_for_each(|copy| replace_file(disk, dir, copy, &bytes))
    }
}

/// Rules that a test switches off. Only tests of this crate can make one that differs from none.
#[derive(Clone, Copy, Debug, Default)]
struct Weaken {
    /// Open a folder that another process has.
    #[cfg(test)]
    no_lock: bool,
    /// Open a folder that a peer has refused.
    #[cfg(test)]
    ignore_dead: bool,
}

impl Weaken {
    #[cfg(test)]
    fn no_lock(self) -> bool {
        self.no_lock
    }
    #[cfg(not(test))]
    fn no_lock(self) -> bool {
        false
    }
    #[cfg(test)]
    fn ignore_dead(self) -> bool {
        self.ignore_dead
    }
    #[cfg(not(test))]
    fn ignore_dead(self) -> bool {
        false
    }
}

/// A locked folder and who it is.
#[derive(Debug)]
pub struct Folder {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    _lock: Option<Box<dyn DiskLock>>,
}

impl Folder {
    /// Locks the folder (made when missing), reads or draws its identity, and counts this start.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn open(env: &Env, dir: &Path, node: NodeId) -> Result<Self, IdentityError> {
        Self::open_with(env, dir, node, Weaken::default())
    }

    fn open_with(
        env: &Env,
        dir: &Path,
        node: NodeId,
        weaken: Weaken,
    ) -> Result<Self, IdentityError> {
        let disk = Arc::clone(&env.disk);
        disk.create_dir_all(dir)?;
        let lock = match disk.lock_dir(dir) {
            Ok(lock) => Some(lock),
            Err(_) if weaken.no_lock() => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(IdentityError::InUse(dir.to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        if disk.exists(&dir.join(DEAD))? && !weaken.ignore_dead() {
            let read = read_file(disk.as_ref(), &dir.join(DEAD), REASON_BYTES);
            let reason = match read {
                Ok(reason) => String::from_utf8_lossy(&reason).into_owned(),
                Err(error) => format!("the reason cannot be read: {error}"),
            };
            return Err(IdentityError::Dead { folder: dir.to_owned(), reason });
        }
        let mut identity = match Identity::read(disk.as_ref(), dir)? {
            Some(identity) if identity.node != node => {
                let (folder, actual) = (dir.to_owned(), identity.node);
                return Err(IdentityError::OtherNode { folder, actual, asked: node });
            }
            Some(identity) => identity,
            None => Identity {
                cluster: ClusterId::default(),
                node,
                incarnation: env.random.u64(),
                boot_counter: 0,
                boot_id: 0,
            },
        };
        identity.boot_counter += 1;
        identity.boot_id = env.random.u64();
        identity.store(disk.as_ref(), dir)?;
        Ok(Self { disk, dir: dir.to_owned(), identity, _lock: lock })
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Stores the cluster, synced. Joining the same one again changes nothing.
    ///
    /// # Errors
    /// `OtherCluster` when it belongs to another; otherwise as the disk says.
    pub fn join(&mut self, cluster: ClusterId) -> Result<(), IdentityError> {
        if self.identity.cluster == cluster {
            return Ok(());
        }
        if !self.identity.cluster.is_unborn() {
            return Err(IdentityError::OtherCluster(self.identity.cluster));
        }
        let joined = Identity { cluster, ..self.identity };
        joined.store(self.disk.as_ref(), &self.dir)?;
        self.identity = joined;
        Ok(())
    }

    /// Sees to it that no later start opens the folder, whatever it would count (N1). Synced on return.
    ///
    /// # Errors
    /// As the disk says.
    pub fn mark_dead(&self, reason: &str) -> io::Result<()> {
        replace_file(self.disk.as_ref(), &self.dir, DEAD, reason.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use annulus_runtime::disk::Open;

    #[test]
    fn a_folder_has_one_process_one_node_one_cluster_and_counts_its_starts() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let mut first = Folder::open(&env, folder.path(), NodeId(1)).unwrap();
        let in_use = Folder::open(&env, folder.path(), NodeId(1)).unwrap_err();
        assert!(matches!(in_use, IdentityError::InUse(_)));
        first.join(ClusterId([1; 16])).unwrap();
        first.join(ClusterId([1; 16])).unwrap();
        let other = first.join(ClusterId([2; 16])).unwrap_err();
        assert!(matches!(other, IdentityError::OtherCluster(_)));
        let life = first.identity();
        drop(first);
        let wrong = Folder::open(&env, folder.path(), NodeId(2)).unwrap_err();
        assert!(matches!(wrong, IdentityError::OtherNode { .. }));
        let again = Folder::open(&env, folder.path(), NodeId(1)).unwrap().identity();
        let (boot_counter, boot_id) = (life.boot_counter + 1, again.boot_id);
        assert_eq!(again, Identity { boot_counter, boot_id, ..life });
        assert_ne!(boot_id, life.boot_id, "each start draws its own");
        for copy in COPIES {
            let bytes = read_file(env.disk.as_ref(), &folder.path().join(copy), 4096).unwrap();
            assert_eq!(Identity::decode(&bytes), Some(again), "{copy}");
        }
    }

    /// Opens a folder that is open already. What both processes tell of themselves, or why the second
    /// cannot.
    fn opened_twice(weaken: Weaken) -> Result<[Identity; 2], IdentityError> {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let mut first = Folder::open_with(&env, folder.path(), NodeId(1), weaken).unwrap();
        first.join(ClusterId([1; 16])).unwrap();
        let second = Folder::open_with(&env, folder.path(), NodeId(1), weaken)?;
        Ok([first.identity(), second.identity()])
    }

    #[test]
    fn two_processes_never_have_one_folder() {
        let refused = opened_twice(Weaken::default()).unwrap_err();
        assert!(matches!(refused, IdentityError::InUse(_)), "{refused}");

        // Without the lock both run, and whatever one promises as this node the other does not know.
        let [first, second] = opened_twice(Weaken { no_lock: true, ..Weaken::default() }).unwrap();
        let who = |one: Identity| (one.cluster, one.node, one.incarnation);
        assert_eq!(who(first), who(second));
        assert_ne!(first.boot_id, second.boot_id);
    }

    /// Starts a folder that a peer has refused. What the new process tells of itself, and what the one
    /// before did.
    fn started_after_a_refusal(weaken: Weaken) -> Result<[Identity; 2], IdentityError> {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let refused = Folder::open_with(&env, folder.path(), NodeId(1), weaken).unwrap();
        let before = refused.identity();
        refused.mark_dead("start 4 was seen").unwrap();
        drop(refused);
        Folder::open_with(&env, folder.path(), NodeId(1), weaken)
            .map(|folder| [before, folder.identity()])
    }

    #[test]
    fn a_folder_that_a_peer_refused_never_starts_again() {
        let error = started_after_a_refusal(Weaken::default()).unwrap_err();
        let told = error.to_string();
        assert!(
            matches!(error, IdentityError::Dead { reason, .. } if reason == "start 4 was seen")
        );
        assert!(
            told.contains("(start 4 was seen)") && told.contains("Never start it again"),
            "{told}"
        );

        // Without the rule it starts until it has counted past what the peers remember.
        let weaken = Weaken { ignore_dead: true, ..Weaken::default() };
        let [before, after] = started_after_a_refusal(weaken).unwrap();
        assert_eq!(after.incarnation, before.incarnation);
        assert_eq!(after.boot_counter, before.boot_counter + 1);
    }

    #[test]
    fn one_good_copy_is_enough_and_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let life = Folder::open(&env, folder.path(), NodeId(1)).unwrap().identity();
        for (damaged, copy) in COPIES.iter().enumerate() {
            let file = env.disk.open(&folder.path().join(copy), Open::Write).unwrap();
            file.write_all_at(&[9], 30).unwrap();
            let opened = Folder::open(&env, folder.path(), NodeId(1));
            if damaged == 0 {
                assert_eq!(opened.unwrap().identity().incarnation, life.incarnation);
                // The start repaired the copy; damage it again for the second round.
                let file = env.disk.open(&folder.path().join(copy), Open::Write).unwrap();
                file.write_all_at(&[9], 30).unwrap();
            } else {
                assert!(matches!(opened.unwrap_err(), IdentityError::Unreadable(_)));
            }
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let identity = Identity {
            cluster: ClusterId([7; 16]),
            node: NodeId(1),
            incarnation: 2,
            boot_counter: 3,
            boot_id: 4,
        };
        let bytes = identity.encode();
        assert_eq!(bytes.len(), BYTES);
        assert_eq!(
            &bytes[..21],
            b"\x01\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\0\0\0\x01"
        );
        assert_eq!(&bytes[21..37], b"\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03");
        assert_eq!(&bytes[37..45], b"\0\0\0\0\0\0\0\x04");
        assert_eq!(bytes[45..], 0xcb7c_33cb_u32.to_be_bytes());
        assert_eq!(Identity::decode(&bytes), Some(identity));
    }
}

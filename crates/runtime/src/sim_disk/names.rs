//! The names of a simulated disk: the tree that processes see, the one on the medium, and the
//! changes between them that no sync has made durable. Knows nothing of bytes, processes or
//! planned faults.
//!
//! Invariants:
//! - a change (create, rename, remove) is on the medium whole or not at all;
//! - changes of one name keep their order, changes of different names survive a crash
//!   independently;
//! - a rename from one folder to another is ordered with everything, as in a journal: else a crash
//!   could leave a file in neither of them, which no file system does;
//! - a sync of a folder covers the names in it, not the name *of* it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use parking_lot::Mutex;

use super::content::Content;
use crate::Random;

/// Numbers of folders are never used again.
pub(super) type Folder = u64;

const ROOT: Folder = 0;

/// A name in a folder.
pub(super) type Slot = (Folder, String);

type Names = BTreeMap<Slot, Node>;

#[derive(Clone)]
pub(super) enum Node {
    File(Arc<Mutex<Content>>),
    Folder(Folder),
}

/// One step from the tree on the medium to the visible one.
pub(super) struct Change {
    removed: Option<Slot>,
    added: Option<(Slot, Node)>,
    /// A sync failed since: later syncs prove nothing for it.
    doubtful: bool,
}

impl Change {
    pub(super) fn link(slot: Slot, node: Node) -> Self {
        Self { removed: None, added: Some((slot, node)), doubtful: false }
    }

    pub(super) fn unlink(slot: Slot) -> Self {
        Self { removed: Some(slot), added: None, doubtful: false }
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.removed.iter().chain(self.added.iter().map(|(slot, _)| slot))
    }

    fn touches(&self, folder: Folder) -> bool {
        self.slots().any(|(holder, _)| *holder == folder)
    }

    fn crosses_folders(&self) -> bool {
        match (&self.removed, &self.added) {
            (Some((from, _)), Some(((to, _), _))) => from != to,
            _ => false,
        }
    }

    /// Whether this change cannot be on the medium without that `earlier` one.
    fn needs(&self, earlier: &Self) -> bool {
        self.crosses_folders()
            || earlier.crosses_folders()
            || self.slots().any(|slot| earlier.slots().any(|other| other == slot))
    }

    fn apply(&self, names: &mut Names) {
        if let Some(slot) = &self.removed {
            names.remove(slot);
        }
        if let Some((slot, node)) = &self.added {
            names.insert(slot.clone(), node.clone());
        }
    }
}

pub(super) struct Tree {
    visible: Names,
    durable: Names,
    /// Oldest first.
    pending: Vec<Change>,
    next_folder: Folder,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            visible: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            next_folder: ROOT + 1,
        }
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<Node> {
        self.walk(&parts(path)?)
    }

    pub(super) fn find_folder(&self, path: &Path) -> io::Result<Folder> {
        match self.find(path)? {
            Node::Folder(folder) => Ok(folder),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Where the name that ends `path` is, or would be.
    pub(super) fn slot(&self, path: &Path) -> io::Result<Slot> {
        let mut names = parts(path)?;
        let Some(name) = names.pop() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match self.walk(&names)? {
            Node::Folder(folder) => Ok((folder, name.to_owned())),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The changes that create the missing folders of `path`, the outermost first.
    pub(super) fn missing_folders(&mut self, path: &Path) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        let mut folder = ROOT;
        let names = parts(path)?;
        for (position, name) in names.iter().enumerate() {
            let slot = (folder, (*name).to_owned());
            folder = match self.visible.get(&slot) {
                Some(Node::Folder(existing)) => *existing,
                Some(Node::File(_)) if position + 1 == names.len() => {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    let made = self.next_folder;
                    self.next_folder += 1;
                    changes.push(Change::link(slot, Node::Folder(made)));
                    made
                }
            };
        }
        Ok(changes)
    }

    /// The change that moves `from` to `to`; none when they are the same name.
    pub(super) fn renaming(&self, from: &Path, to: &Path) -> io::Result<Option<Change>> {
        let node = self.find(from)?;
        let (from, to) = (self.slot(from)?, self.slot(to)?);
        if from == to {
            return Ok(None);
        }
        let refusal = match (&node, self.visible.get(&to)) {
            (Node::Folder(moved), _) if self.below(*moved).contains(&to.0) => {
                Some(io::ErrorKind::InvalidInput)
            }
            (Node::File(_), Some(Node::Folder(_))) => Some(io::ErrorKind::IsADirectory),
            (Node::Folder(_), Some(Node::File(_))) => Some(io::ErrorKind::NotADirectory),
            (Node::Folder(_), Some(Node::Folder(target))) if !self.list(*target).is_empty() => {
                Some(io::ErrorKind::DirectoryNotEmpty)
            }
            _ => None,
        };
        match refusal {
            Some(kind) => Err(kind.into()),
            None => {
                Ok(Some(Change { removed: Some(from), added: Some((to, node)), doubtful: false }))
            }
        }
    }

    /// The changes that remove a folder and all that it holds, the innermost first.
    pub(super) fn removing(&self, path: &Path) -> io::Result<Vec<Change>> {
        let folder = self.find_folder(path)?;
        let outermost = self.slot(path)?;
        let mut changes = Vec::new();
        for inner in self.below(folder).into_iter().rev() {
            for name in self.list(inner) {
                changes.push(Change::unlink((inner, name)));
            }
        }
        changes.push(Change::unlink(outermost));
        Ok(changes)
    }

    pub(super) fn make(&mut self, change: Change) {
        change.apply(&mut self.visible);
        self.pending.push(change);
    }

    pub(super) fn list(&self, folder: Folder) -> Vec<String> {
        entries(&self.visible, folder).map(|((_, name), _)| name.clone()).collect()
    }

    /// The visible files, in the order of their folders and names.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<Mutex<Content>>> {
        self.visible.values().filter_map(|node| match node {
            Node::File(content) => Some(content),
            Node::Folder(_) => None,
        })
    }

    /// Makes the names in a folder durable, and the earlier changes that they stand on.
    pub(super) fn sync(&mut self, folder: Folder) {
        let mut durable: Vec<bool> =
            self.pending.iter().map(|change| change.touches(folder) && !change.doubtful).collect();
        for later in (0..durable.len()).rev() {
            if !durable[later] {
                continue;
            }
            let change = &self.pending[later];
            for (mark, earlier) in durable[..later].iter_mut().zip(&self.pending) {
                *mark |= change.needs(earlier);
            }
        }
        for (change, durable) in std::mem::take(&mut self.pending).into_iter().zip(durable) {
            if durable {
                change.apply(&mut self.durable);
            } else {
                self.pending.push(change);
            }
        }
        self.sweep();
    }

    pub(super) fn fail_sync(&mut self, folder: Folder) {
        for change in self.pending.iter_mut().filter(|change| change.touches(folder)) {
            change.doubtful = true;
        }
    }

    /// Leaves what a power cut leaves.
    pub(super) fn crash(&mut self, random: &Random) {
        let odds = random.below(5);
        let mut lost: Vec<Change> = Vec::new();
        for change in std::mem::take(&mut self.pending) {
            let lucky = random.below(4) < odds;
            if lucky && !lost.iter().any(|earlier| change.needs(earlier)) {
                change.apply(&mut self.durable);
            } else {
                lost.push(change);
            }
        }
        self.visible = self.durable.clone();
        self.sweep();
    }

    fn walk(&self, names: &[&str]) -> io::Result<Node> {
        let mut node = Node::Folder(ROOT);
        for name in names {
            let Node::Folder(folder) = node else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            let Some(child) = self.visible.get(&(folder, (*name).to_owned())) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            node = child.clone();
        }
        Ok(node)
    }

    /// A folder and the visible folders below it; each follows the one that holds it.
    fn below(&self, folder: Folder) -> Vec<Folder> {
        let mut found = vec![folder];
        let mut next = 0;
        while let Some(&holder) = found.get(next) {
            next += 1;
            for (_, node) in entries(&self.visible, holder) {
                if let Node::Folder(inner) = node {
                    found.push(*inner);
                }
            }
        }
        found
    }

    /// Forgets what nothing leads to any more.
    fn sweep(&mut self) {
        let mut reached = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(folder) = open.pop() {
            let added = self.pending.iter().filter_map(|change| change.added.as_ref());
            let nodes = entries(&self.visible, folder)
                .chain(entries(&self.durable, folder))
                .map(|(_, node)| node)
                .chain(added.filter(|(slot, _)| slot.0 == folder).map(|(_, node)| node));
            for node in nodes {
                if let Node::Folder(inner) = node
                    && reached.insert(*inner)
                {
                    open.push(*inner);
                }
            }
        }
        self.visible.retain(|(folder, _), _| reached.contains(folder));
        self.durable.retain(|(folder, _), _| reached.contains(folder));
        self.pending.retain(|change| change.slots().any(|(folder, _)| reached.contains(folder)));
    }
}

fn entries(names: &Names, folder: Folder) -> impl Iterator<Item = (&Slot, &Node)> {
    names.range((folder, String::new())..).take_while(move |(slot, _)| slot.0 == folder)
}

/// The names along a path from the root. Relative paths start there too.
fn parts(path: &Path) -> io::Result<Vec<&str>> {
    if path.as_os_str().is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => match name.to_str() {
                Some(name) => names.push(name),
                None => return Err(io::ErrorKind::InvalidInput.into()),
            },
            // Where these lead is for an operating system to say.
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
    }
    Ok(names)
}

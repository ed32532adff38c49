//! Which node a TCP connection belongs to, from what Linux tells of sockets and processes.
//!
//! `/proc/net/tcp` names the inode of each socket by its two addresses; the descriptors of a process
//! (`/proc/PID/fd`) name the inodes of its sockets. Both are only read, and only of processes that the
//! harness has started.
//!
//! Invariant: a node is named only if its process holds the very socket. What cannot be found (the
//! connection is gone, the process has ended, another system than Linux) belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;

/// The state of an established connection in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// The processes of the nodes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Owners(Arc<Mutex<BTreeMap<u16, u32>>>);

impl Owners {
    /// The process of a node from now on.
    pub fn set(&self, node: u16, process: u32) {
        self.0.lock().insert(node, process);
    }

    /// The node that has the socket at `local` which is connected to `remote`. Reads files of the
    /// kernel, which takes some milliseconds.
    #[must_use]
    pub fn of(&self, local: SocketAddr, remote: SocketAddr) -> Option<u16> {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let all: Vec<Socket> = sockets(&table).collect();
        let own =
            all.iter().find(|it| it.local == local && it.remote == remote && it.inode != 0)?;
        let nodes = self.0.lock().clone();
        nodes.into_iter().find(|(_, process)| inodes(*process).contains(&own.inode)).map(|it| it.0)
    }

    /// The nodes that have an established connection to `remote`.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn connected_to(&self, remote: SocketAddr) -> io::Result<Vec<u16>> {
        let table = std::fs::read_to_string("/proc/net/tcp")?;
        let those: BTreeSet<u64> = sockets(&table)
            .filter(|socket| socket.is_established && socket.remote == remote)
            .map(|socket| socket.inode)
            .collect();
        let nodes = self.0.lock().clone();
        let connected =
            nodes.into_iter().filter(|(_, process)| !inodes(*process).is_disjoint(&those));
        Ok(connected.map(|(node, _)| node).collect())
    }
}

/// A line of `/proc/net/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    is_established: bool,
    /// 0: no process has it any more.
    inode: u64,
}

fn sockets(table: &str) -> impl Iterator<Item = Socket> {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        Some(Socket {
            local: address(fields.get(1)?)?,
            remote: address(fields.get(2)?)?,
            is_established: *fields.get(3)? == ESTABLISHED,
            inode: fields.get(9)?.parse().ok()?,
        })
    })
}

/// `0100007F:1CE8`: the address as the machine's own word, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let host = u32::from_str_radix(host, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddr::from((Ipv4Addr::from(host.to_ne_bytes()), port)))
}

/// The sockets of a process; none when it cannot be looked at.
fn inodes(process: u32) -> BTreeSet<u64> {
    let Ok(listing) = std::fs::read_dir(format!("/proc/{process}/fd")) else {
        return BTreeSet::new();
    };
    let links = listing.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter_map(|link| inode(link.to_str()?)).collect()
}

fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn the_table_of_the_kernel_is_understood() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0\n   \
            1: 0100007F:C350 0100007F:1CE9 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 20 4 30 10 -1\n";
        let found: Vec<Socket> = sockets(table).collect();
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].local, found[0].is_established), (at(7400), false));
        let expected =
            Socket { local: at(50_000), remote: at(7401), is_established: true, inode: 222 };
        assert_eq!(found[1], expected);
        assert_eq!(
            (inode("socket:[42]"), inode("pipe:[42]"), inode("/dev/null")),
            (Some(42), None, None)
        );
    }

    #[test]
    fn a_connection_belongs_to_the_process_that_made_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let remote = listener.local_addr().unwrap();
        let stream = TcpStream::connect(remote).unwrap();
        let local = stream.local_addr().unwrap();
        let owners = Owners::default();
        assert_eq!(owners.of(local, remote), None, "no node is known yet");
        // No process has this id on any Linux.
        owners.set(1, u32::MAX);
        assert_eq!(owners.of(local, remote), None, "another process");
        owners.set(2, std::process::id());
        assert_eq!(owners.of(local, remote), Some(2));
        assert_eq!(owners.connected_to(remote).unwrap(), [2]);
        let elsewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        assert_eq!(owners.of(local, elsewhere), None);
        assert!(owners.connected_to(elsewhere).unwrap().is_empty());
    }
}

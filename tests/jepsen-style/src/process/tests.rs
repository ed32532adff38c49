//! Against `/bin/sh` and `sleep`, which are on every machine that this runs on.

use std::future::ready;
use std::os::unix::process::ExitStatusExt;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn shell(script: &str, folder: &WorkDir) -> Process {
    Process::spawn("child", Path::new("/bin/sh"), ["-c", script], folder.path()).unwrap()
}

/// A process that only a signal ends; it has printed `ready`.
async fn idle(before: &str, folder: &WorkDir) -> Process {
    let process = shell(&format!("{before} echo ready; exec sleep 600"), folder);
    let has_started = || ready(logged(&process).contains("ready"));
    wait_until("the child is ready", PATIENCE, has_started).await.unwrap();
    process
}

fn logged(process: &Process) -> String {
    std::fs::read_to_string(process.log()).unwrap()
}

/// The letter that `/proc` has for the state of a process: T is stopped.
fn state_of(id: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, behind_the_name) = text.rsplit_once(") ")?;
    behind_the_name.chars().next()
}

#[tokio::test]
async fn output_is_kept_over_restarts_and_kill9_ends_at_once() {
    let folder = WorkDir::new("process").unwrap();
    let mut process = idle("echo to stdout; echo to stderr >&2;", &folder).await;
    assert!(process.is_running());
    assert_eq!(process.kill9().unwrap().signal(), Some(9));
    assert!(!process.is_running());
    assert_eq!(process.kill9().unwrap().signal(), Some(9), "the status stays");
    let mut again = shell("echo once more", &folder);
    wait_until("it has ended", PATIENCE, || ready(!again.is_running())).await.unwrap();
    assert_eq!(logged(&again), "to stdout\nto stderr\nready\nonce more\n");
}

#[tokio::test]
async fn stop_asks_and_then_insists() {
    let folder = WorkDir::new("process").unwrap();
    let mut polite = idle("", &folder).await;
    assert_eq!(polite.stop(PATIENCE).await.unwrap().signal(), Some(15));

    let other = WorkDir::new("process").unwrap();
    // What is ignored stays ignored over exec.
    let mut stubborn = idle("trap '' TERM;", &other).await;
    let status = stubborn.stop(Duration::from_millis(30)).await.unwrap();
    assert_eq!(status.signal(), Some(9));
}

#[tokio::test]
async fn a_paused_process_resumes_and_can_be_stopped() {
    let folder = WorkDir::new("process").unwrap();
    let mut process = idle("", &folder).await;
    let id = process.id();
    process.pause().unwrap();
    wait_until("it is paused", PATIENCE, || ready(state_of(id) == Some('T'))).await.unwrap();
    assert!(process.is_running());
    process.resume().unwrap();
    wait_until("it goes on", PATIENCE, || ready(state_of(id) != Some('T'))).await.unwrap();
    process.pause().unwrap();
    wait_until("it is paused", PATIENCE, || ready(state_of(id) == Some('T'))).await.unwrap();
    assert_eq!(process.stop(PATIENCE).await.unwrap().signal(), Some(15));
}

#[tokio::test]
async fn a_process_that_ended_gets_no_signals() {
    let folder = WorkDir::new("process").unwrap();
    let mut process = shell("exit 3", &folder);
    wait_until("it has ended", PATIENCE, || ready(!process.is_running())).await.unwrap();
    for refused in [process.pause(), process.resume()] {
        let error = refused.unwrap_err().to_string();
        assert!(error.starts_with("child (process "), "{error}");
        assert!(error.contains("has ended"), "{error}");
    }
    assert_eq!(process.kill9().unwrap().code(), Some(3));
    assert_eq!(process.stop(PATIENCE).await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn dropping_the_guard_ends_and_reaps() {
    let folder = WorkDir::new("process").unwrap();
    let process = idle("", &folder).await;
    let id = process.id();
    assert!(state_of(id).is_some());
    drop(process);
    assert_eq!(state_of(id), None, "not even a zombie is left");
}

#[test]
fn a_program_that_is_missing_is_named() {
    let folder = WorkDir::new("process").unwrap();
    let error = Process::spawn("node-1", Path::new("/no/such/program"), [""; 0], folder.path())
        .unwrap_err()
        .to_string();
    assert_eq!(error, "starting node-1: /no/such/program");
}

#[test]
fn a_folder_is_removed_unless_something_went_wrong() {
    let parent = WorkDir::new("parent").unwrap();
    let gone = WorkDir::new_in(parent.path(), "gone").unwrap().path().to_owned();
    assert!(!gone.exists());

    let mut kept = WorkDir::new_in(parent.path(), "kept").unwrap();
    kept.keep();
    let kept_path = kept.path().to_owned();
    drop(kept);
    assert!(kept_path.exists());

    let in_panic = WorkDir::new_in(parent.path(), "panic").unwrap();
    let panic_path = in_panic.path().to_owned();
    let thread = std::thread::spawn::<_, ()>(move || {
        let _in_panic = in_panic;
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    assert!(panic_path.exists());

    let parent_path = parent.path().to_owned();
    drop(parent);
    assert!(!parent_path.exists());
}

#[tokio::test]
async fn waiting_looks_again_and_names_what_it_waited_for() {
    let mut looks = 0;
    let third_time = || {
        looks += 1;
        ready(looks == 3)
    };
    wait_until("the third look", PATIENCE, third_time).await.unwrap();
    assert_eq!(looks, 3);

    let limit = Duration::from_millis(20);
    let error = wait_until("pigs fly", limit, || ready(false)).await.unwrap_err();
    assert_eq!(error.to_string(), "waited 20ms in vain until pigs fly");
    let hangs = wait_until("an answer comes", limit, std::future::pending).await.unwrap_err();
    assert!(hangs.to_string().contains("an answer comes"), "{hangs}");
    // A condition that holds is seen even without time to wait.
    wait_until("now", Duration::ZERO, || ready(true)).await.unwrap();
}

#[test]
fn port_blocks_are_free_and_apart() {
    let blocks: Vec<PortBlock> = (0..20).map(|_| PortBlock::reserve(5).unwrap()).collect();
    let mut bases: Vec<u16> = blocks.iter().map(PortBlock::base).collect();
    bases.sort_unstable();
    assert!(bases.is_sorted_by(|one, next| one + 50 <= *next), "{bases:?}");

    let block = &blocks[0];
    assert_eq!(block.client(1), block.base());
    assert_eq!(block.client(5), block.base() + 40);
    assert_eq!((block.peer(2), block.http(2)), (block.base() + 11, block.base() + 12));
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let servers: Vec<TcpListener> =
        [block.client(3), block.peer(3), block.http(3)].map(|port| bind(port).unwrap()).into();
    assert_eq!(servers.len(), 3);
    assert!(bind(block.client(3) + 9).is_err(), "the claim is held");
    assert!(PortBlock::reserve(0).is_err() && PortBlock::reserve(51).is_err());
}

#[test]
#[should_panic(expected = "node 3 of 2")]
fn a_node_outside_the_block_has_no_ports() {
    let _port = PortBlock::reserve(2).unwrap().client(3);
}

//! Processes as the operating system sees them: starting a child, knowing it again, ending it; and
//! being told to end.
//!
//! A process is known by its id *and* its command line. Ids are used again, and a record of one may
//! be older than a reboot; a signal to the id alone could hit a stranger. Between the look and the
//! signal a process can still be replaced; that takes a whole turn of the id counter in a few
//! microseconds.
//!
//! A process is *gone* when its files and ports are free again: a process that is being taken down
//! has lost its command line, but its threads may still hold them.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use annulus_runtime::{Disk, Open};
use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::signal::unix::{self, SignalKind, signal};

use super::LOOK_EVERY;

/// SIGKILL works at once, except on a process that waits for a disk.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// What of a log is shown, at most.
const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 8;

/// A process by its id and its command line, without the name of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its arguments.
    pub args: Vec<String>,
}

/// How an attempt to end processes went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// So many had to be killed.
    pub killed: usize,
    /// So many are still there.
    pub left: usize,
}

impl Process {
    /// Whether it runs: neither gone nor on its way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        kernel_says(self.pid, "cmdline").is_some_and(|line| self.is_shown_by(&line))
    }

    fn is_shown_by(&self, line: &[u8]) -> bool {
        // Every word ends in a zero byte.
        let Some(line) = line.strip_suffix(b"\0") else { return false };
        line.split(|byte| *byte == 0).skip(1).eq(self.args.iter().map(String::as_bytes))
    }

    /// Waits until a process that was just started shows its command line, a second at most. The
    /// kernel lets the parent go on a moment earlier: who asked then would not know its own child,
    /// and a signal would not be sent.
    fn wait_for_command_line(&self) {
        for _ in 0..1000 {
            if self.is_settled_by(|what| kernel_says(self.pid, what)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether it shows itself, or has ended. A child that was just started shows nothing, or still
    /// its parent's command line.
    fn is_settled_by(&self, mut says: impl FnMut(&str) -> Option<Vec<u8>>) -> bool {
        says("cmdline").is_some_and(|line| self.is_shown_by(&line))
            || says("stat").is_none_or(|stat| only_waited_for(&stat))
    }

    /// Whether nothing of it holds a file or a port any more.
    fn is_gone(&self) -> bool {
        self.is_gone_by(|what| kernel_says(self.pid, what))
    }

    /// Judges one look at the command line: between two it may end, and would seem to be another.
    fn is_gone_by(&self, mut says: impl FnMut(&str) -> Option<Vec<u8>>) -> bool {
        match says("cmdline") {
            None => true,
            // Empty from the time when its memory went.
            Some(line) if line.is_empty() => says("stat").is_none_or(|stat| only_waited_for(&stat)),
            Some(line) => !self.is_shown_by(&line),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && self.is_running()
        {
            // It fails when the process ended in between, which is what was asked for, or when it
            // belongs to another user; it then stays, and that is reported.
            let _ = kill_process(pid, signal);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "/proc is the kernel's, no disk that could be faked")]
fn kernel_says(pid: u32, what: &str) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/{what}")).ok()
}

/// Whether a line of `/proc/PID/stat` tells of a process that ended, with all its threads, and is
/// only still listed until its parent asks for it.
fn only_waited_for(stat: &[u8]) -> bool {
    // `pid (name) state …`: the name may hold anything, but nothing after it holds a parenthesis.
    let text = String::from_utf8_lossy(stat);
    let Some((_, rest)) = text.rsplit_once(')') else { return false };
    let mut fields = rest.split_whitespace();
    let ended = matches!(fields.next(), Some("Z" | "X"));
    // The state is field 3, the number of threads field 20.
    let threads = fields.nth(16).and_then(|threads| threads.parse::<u32>().ok());
    ended && threads.is_none_or(|threads| threads <= 1)
}

/// Starts `program` with `args`, in a process group of its own, with its messages appended to the
/// file `log`.
///
/// # Errors
/// When the log cannot be opened or the program cannot be run.
pub fn start_child(
    disk: &dyn Disk,
    program: &Path,
    log: &Path,
    args: Vec<String>,
    kill_on_drop: bool,
) -> anyhow::Result<(Child, Process)> {
    // The file belongs to the child: it is handed over as it is, and read only by `log_tail`.
    let file = OpenOptions::new().create(true).append(true).open(log);
    let file = file.with_context(|| format!("opening {}", log.display()))?;
    let messages = file.try_clone().with_context(|| format!("opening {}", log.display()))?;
    let mut command = std::process::Command::new(program);
    command.args(&args).stdin(Stdio::null()).stdout(file).stderr(messages).process_group(0);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ANNULUS_") {
            command.env_remove(&name);
        }
    }
    let mut command = tokio::process::Command::from(command);
    let child = command.kill_on_drop(kill_on_drop).spawn();
    let child = child.with_context(|| format!("running {}", program.display()))?;
    let pid = child.id().with_context(|| {
        format!("it ended at once; the end of its log:\n{}", log_tail(disk, log))
    })?;
    let process = Process { pid, args };
    process.wait_for_command_line();
    Ok((child, process))
}

/// Sends `first` to all, waits `limit` for their end, kills those that are left, and waits for them
/// too.
pub async fn end(processes: &[Process], first: Signal, limit: Duration) -> Ended {
    for process in processes {
        process.signal(first);
    }
    if gone_within(processes, limit).await {
        return Ended::default();
    }
    let stubborn: Vec<&Process> = processes.iter().filter(|process| !process.is_gone()).collect();
    for process in &stubborn {
        process.signal(Signal::KILL);
    }
    gone_within(processes, KILL_LIMIT).await;
    let left = processes.iter().filter(|process| !process.is_gone()).count();
    Ended { killed: stubborn.len() - left.min(stubborn.len()), left }
}

async fn gone_within(processes: &[Process], limit: Duration) -> bool {
    let gone = async {
        while !processes.iter().all(Process::is_gone) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(limit, gone).await.is_ok()
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn log_tail(disk: &dyn Disk, path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let file = disk.open(path, Open::Read)?;
        let len = file.len()?;
        let from = len.saturating_sub(TAIL_BYTES);
        let mut data = vec![0; usize::try_from(len - from).unwrap_or(0)];
        file.read_exact_at(&mut data, from)?;
        Ok(data)
    };
    match read() {
        Ok(data) => {
            let text = String::from_utf8_lossy(&data);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
        }
        Err(error) => format!("(no log to show: {error})"),
    }
}

/// SIGTERM and SIGINT (Ctrl-C), from the time that this is made.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    /// Begins to listen; from now on neither ends the process by itself.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one and names it. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use annulus_runtime::Env;

    use super::*;

    fn sleeper(dir: &Path) -> (Child, Process) {
        let env = Env::real().unwrap();
        let args = vec!["600".to_owned()];
        let log = dir.join("node.log");
        start_child(env.disk.as_ref(), Path::new("sleep"), &log, args, true).unwrap()
    }

    #[tokio::test]
    async fn a_process_is_known_by_its_command_line_and_ends_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, process) = sleeper(dir.path());
        assert!(process.is_running() && !process.is_gone());
        let stranger = Process { args: vec!["60".to_owned()], ..process.clone() };
        assert!(!stranger.is_running() && stranger.is_gone());
        let ended = end(std::slice::from_ref(&stranger), Signal::KILL, KILL_LIMIT).await;
        assert_eq!(ended, Ended::default());
        assert!(process.is_running(), "a signal for a stranger must not reach it");

        let ended = end(std::slice::from_ref(&process), Signal::TERM, KILL_LIMIT).await;
        assert_eq!(ended, Ended::default());
        assert!(process.is_gone());
        assert!(!child.wait().await.unwrap().success());
    }

    #[tokio::test]
    async fn a_child_is_known_from_the_moment_that_it_was_started() {
        let dir = tempfile::tempdir().unwrap();
        for turn in 0..300 {
            let (_child, process) = sleeper(dir.path());
            assert!(process.is_running(), "child {turn}");
        }
    }

    #[tokio::test]
    async fn a_process_that_does_not_listen_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (_child, process) = sleeper(dir.path());
        // Sent and never acted upon: `sleep` ignores nothing, but this signal does nothing to it.
        let ended = end(std::slice::from_ref(&process), Signal::CONT, Duration::ZERO).await;
        assert_eq!(ended, Ended { killed: 1, left: 0 });
    }

    #[test]
    fn a_child_that_shows_its_parents_command_line_is_waited_for() {
        let process = Process { pid: 7, args: vec!["600".to_owned()] };
        let running = b"7 (sleep) R 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 9";
        let settled = |line: Option<&[u8]>| {
            process.is_settled_by(|what| match what {
                "cmdline" => line.map(<[u8]>::to_vec),
                _ => Some(running.to_vec()),
            })
        };
        assert!(!settled(Some(b"annulus\0dev\0")));
        assert!(!settled(Some(b"")));
        assert!(!settled(None), "one look that failed says nothing");
        assert!(settled(Some(b"sleep\x00600\x00")));
        assert!(process.is_settled_by(|_| None), "it has ended");
    }

    #[test]
    fn a_process_that_ends_between_two_looks_is_not_gone_yet() {
        let process = Process { pid: 7, args: vec!["600".to_owned()] };
        let mut lines = vec![Vec::new(), b"sleep\x00600\x00".to_vec()];
        let mut says = |what: &str| match what {
            "cmdline" => lines.pop(),
            _ => Some(b"7 (sleep) R 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 9".to_vec()),
        };
        assert!(!process.is_gone_by(&mut says), "it shows itself");
        assert!(!process.is_gone_by(&mut says), "its memory is gone, it is not");
        assert!(process.is_gone_by(&mut says));
    }

    #[test]
    fn an_ended_process_counts_as_gone_only_with_its_threads() {
        let line = |state: &str, threads: u32| {
            format!("7 (a) (b) {state} 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 9")
                .into_bytes()
        };
        assert!(only_waited_for(&line("Z", 1)));
        assert!(!only_waited_for(&line("Z", 2)));
        assert!(!only_waited_for(&line("S", 1)));
        assert!(!only_waited_for(b"nonsense"));
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let path = dir.path().join("node.log");
        assert!(log_tail(env.disk.as_ref(), &path).starts_with("(no log"));
        let text: String = (0..2000).map(|n| format!("line {n}\n")).collect();
        let file = env.disk.open(&path, Open::CreateNew).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
        let tail = log_tail(env.disk.as_ref(), &path);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.starts_with("line 1992\n") && tail.ends_with("line 1999"), "{tail}");
    }
}

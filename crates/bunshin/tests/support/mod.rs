//! The fixture of the integration tests: a watchdog, and a check that a test
//! leaves nothing behind.
//!
//! A test starts with
//!
//! ```ignore
//! let _guard = support::guard(30);
//! ```
//!
//! The guard holds a lock over the whole test binary, so that the tests of one
//! binary run one after the other also where they share a process (plain
//! `cargo test`): children, descriptors and mappings belong to the process, and
//! could not be told apart otherwise. Every test of a binary that uses it must
//! therefore take it. What a process creates once and keeps, such as the
//! forkserver and its descriptors, has to exist before the guard counts: warm it
//! up inside [`guard_after`].
#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part of this module"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use bunshin::{Process, StartMethod};
use rustix::process::{Pid, Signal};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use methods::{each_method, start_each_way_once};

pub(crate) mod manager;
mod methods;
pub(crate) mod python;

/// Children that live as long as the process and are no leak, by their `comm`.
const HELPERS: &[&str] = &["bunshin-fs", "bunshin-shm"];

/// What the engine's mappings are called in `/proc/PID/maps`.
const MAPPING_NAME: &str = "memfd:bunshin";

/// How long what a test has ended may take to disappear.
const SETTLE: Duration = Duration::from_secs(2);

/// Only one guarded test of a binary runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Guards a test that must end within `seconds`; see [`Guard`].
pub(crate) fn guard(seconds: u64) -> Guard {
    guard_after(seconds, || {})
}

/// Like [`guard`], but first runs `warm_up`, under the watchdog: whatever it
/// leaves behind counts as having been there before.
pub(crate) fn guard_after(seconds: u64, warm_up: impl FnOnce()) -> Guard {
    let turn = ONE_AT_A_TIME
        .lock()
        // A failed test has been reported; the next one still runs.
        .unwrap_or_else(PoisonError::into_inner);
    let watchdog = Watchdog::start(seconds);
    warm_up();
    Guard {
        before: Holdings::now(),
        _watchdog: watchdog,
        _turn: turn,
    }
}

/// Ends the process if the test lasts too long, and fails the test if it leaves
/// a child, a zombie, a descriptor or a mapping behind.
///
/// A test that has failed already is not checked. The children of a failed test
/// are killed, so that the next one starts from nothing.
pub(crate) struct Guard {
    before: Holdings,
    // Fields drop in this order: the turn is given up last.
    _watchdog: Watchdog,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let leaks = if thread::panicking() {
            None
        } else {
            self.before.wait_until_back()
        };
        if thread::panicking() || leaks.is_some() {
            for child in Holdings::now().children.into_keys() {
                if !self.before.children.contains_key(&child) {
                    kill_tree(child);
                }
            }
        }
        if let Some(leaks) = leaks {
            panic!("the test left behind:\n  {leaks}");
        }
    }
}

/// Runs a test's body under every start method.
///
/// A process with several threads may not be forked, and one that runs under a test
/// harness has them. For `fork`, the body therefore runs in a child that has one
/// thread, and is checked there for what it leaves behind. Like the target of any
/// process, it must capture nothing.
pub(crate) fn under_each_start_method<F>(body: F)
where
    F: Fn(StartMethod) + Copy + 'static,
{
    for method in start_methods() {
        if method == StartMethod::Fork {
            in_single_thread(move || body(StartMethod::Fork));
        } else {
            body(method);
        }
    }
}

/// Runs `body`, which captures nothing, in a child that has one thread, and fails as
/// it does.
pub(crate) fn in_single_thread<F>(body: F)
where
    F: Fn() + Copy + 'static,
{
    let child = Process::builder()
        .name("single-threaded test")
        .start_method(StartMethod::Spawn)
        .start(
            move || {
                let before = Holdings::now();
                body();
                if let Some(leaks) = before.wait_until_back() {
                    panic!("the test left behind:\n  {leaks}");
                }
            },
            (),
        );
    let result = child.expect("the test's child can be started").result();
    if let Err(error) = result {
        panic!("in a child with one thread: {error}");
    }
}

/// What the process holds at one moment.
struct Holdings {
    /// Direct children: pid to a description.
    children: BTreeMap<u32, String>,
    /// Descriptors: number to what it refers to.
    descriptors: BTreeMap<i32, String>,
    /// The lines of the engine's mappings.
    mappings: BTreeSet<String>,
}

impl Holdings {
    fn now() -> Self {
        let own = process::id();
        let children = processes()
            .into_iter()
            .filter(|p| p.parent == own && !p.is_helper())
            .map(|p| (p.pid, p.describe()))
            .collect();
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        let mappings = maps
            .lines()
            .filter(|line| line.contains(MAPPING_NAME))
            .map(str::to_owned)
            .collect();
        Self {
            children,
            descriptors: descriptors(own),
            mappings,
        }
    }

    /// Waits until nothing is held beyond this; what still is, if it lasts.
    fn wait_until_back(&self) -> Option<String> {
        let mut leaks = Vec::new();
        let clean = wait_until(SETTLE, || {
            leaks = Self::now().beyond(self);
            leaks.is_empty()
        });
        (!clean).then(|| leaks.join("\n  "))
    }

    /// What is here and was not there before, a line each.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let mut new = Vec::new();
        for (pid, child) in &self.children {
            if !before.children.contains_key(pid) {
                new.push(format!("child {child}"));
            }
        }
        // The spare child of the forkserver has another socket after each start, under
        // another number; only a growing number is a leak.
        if self.descriptors.len() > before.descriptors.len() {
            for (number, target) in &self.descriptors {
                if before.descriptors.get(number) != Some(target) {
                    new.push(format!("descriptor {number} -> {target}"));
                }
            }
        }
        // A mapping may move or be split; only a growing number is a leak.
        if self.mappings.len() > before.mappings.len() {
            let added = self.mappings.difference(&before.mappings);
            new.extend(added.map(|line| format!("mapping {line}")));
        }
        new
    }
}

/// Aborts the process, with a report, unless it is dropped in time.
struct Watchdog {
    /// Never sent to; that it is gone is the sign that the test has ended.
    test_runs: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(seconds: u64) -> Self {
        let (test_runs, ended) = channel();
        let test = thread::current().name().unwrap_or("?").to_owned();
        let watch = move || {
            let limit = Duration::from_secs(seconds);
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                bite(&test, seconds);
            }
        };
        let thread = thread::Builder::new().name("watchdog".to_owned());
        Self {
            test_runs: Some(test_runs),
            thread: Some(thread.spawn(watch).expect("a thread can be started")),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.test_runs.take());
        if let Some(thread) = self.thread.take() {
            // Joined, so that no later test of this process counts the thread.
            let _ = thread.join();
        }
    }
}

/// Says where everybody stands, kills all descendants and aborts.
fn bite(test: &str, seconds: u64) -> ! {
    let own = process::id();
    let mut report = format!("\nwatchdog: test `{test}` has not ended after {seconds} s\n");
    report += "threads of this process:\n";
    for thread in threads(own) {
        report += &format!("  {thread}\n");
    }
    let below = descendants(own);
    report += &format!("descendants, {}:\n", below.len());
    for process in processes().iter().filter(|p| below.contains(&p.pid)) {
        report += &format!("  {}\n", process.describe());
        for thread in threads(process.pid) {
            report += &format!("    {thread}\n");
        }
    }
    // Not `eprintln!`: the test harness would keep it and lose it in the abort.
    let _ = io::stderr().write_all(report.as_bytes());
    for pid in below {
        kill(pid, Signal::KILL);
    }
    process::abort();
}

/// One line of `/proc/PID/stat`.
pub(crate) struct ProcessState {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) comm: String,
    /// `R`unning, `S`leeping, `T` stopped, `Z`ombie, and so on.
    pub(crate) state: char,
}

impl ProcessState {
    /// Reads the state of a process; `None` if there is none with this pid.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may contain more of them.
        let (start, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        Some(Self {
            pid,
            comm: start.split_once('(')?.1.to_owned(),
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
        })
    }

    /// Whether this is a living helper; a dead one has to be reaped like any child.
    pub(crate) fn is_helper(&self) -> bool {
        self.state != 'Z' && HELPERS.contains(&self.comm.as_str())
    }

    fn describe(&self) -> String {
        let command = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let state = match self.state {
            'Z' => "zombie, never reaped".to_owned(),
            other => format!("state {other}"),
        };
        let Self { pid, comm, .. } = self;
        format!("{pid} ({comm}), {state}: {}", command.trim_end())
    }
}

/// All processes, as far as they can be read.
fn processes() -> Vec<ProcessState> {
    numbered_entries("/proc")
        .into_iter()
        .filter_map(ProcessState::of)
        .collect()
}

/// The entries of a folder of `/proc` that are numbers.
fn numbered_entries(folder: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// For each thread of a process, where it stands.
fn threads(pid: u32) -> Vec<String> {
    let describe = |thread: u32| {
        let read = |file| {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/{file}"));
            text.map_or_else(|error| error.kind().to_string(), |t| t.trim().to_owned())
        };
        let stat = read("stat");
        let state = stat.rsplit_once(')').map_or("?", |(_, rest)| rest.trim());
        let state = state.split(' ').next().unwrap_or("?");
        let (name, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
        format!("{thread} {name}: state {state}, in kernel at {wchan}, system call {syscall}")
    };
    let threads = numbered_entries(&format!("/proc/{pid}/task"));
    threads.into_iter().map(describe).collect()
}

/// The descriptors of a process and what each refers to.
fn descriptors(pid: u32) -> BTreeMap<i32, String> {
    let folder = format!("/proc/{pid}/fd");
    let mut open = BTreeMap::new();
    for number in numbered_entries(&folder) {
        // The descriptor that lists the folder is gone by now.
        if let Ok(target) = fs::read_link(format!("{folder}/{number}")) {
            let number = i32::try_from(number).expect("descriptors are small");
            open.insert(number, target.to_string_lossy().into_owned());
        }
    }
    open
}

/// How many descriptors a process has open.
pub(crate) fn open_descriptors(pid: u32) -> usize {
    descriptors(pid).len()
}

/// The memory of a process that lies in RAM, in bytes; `None` if it has ended.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Whether a process is there and has not ended (a zombie has).
pub(crate) fn is_running(pid: u32) -> bool {
    ProcessState::of(pid).is_some_and(|p| !matches!(p.state, 'Z' | 'X'))
}

/// All processes below `pid`, parents before their children.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let processes = processes();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = processes.iter().filter(|p| p.parent == parent);
        found.extend(children.map(|p| p.pid));
        next += 1;
    }
    found.remove(0);
    found
}

/// How many processes there are below `pid` that are no living helpers.
pub(crate) fn n_below(pid: u32) -> usize {
    let is_helper = |pid: &u32| ProcessState::of(*pid).is_some_and(|p| p.is_helper());
    let below = descendants(pid);
    below.len() - below.iter().filter(|pid| is_helper(pid)).count()
}

/// Sends a signal; `false` if there is no such process any more.
pub(crate) fn kill(pid: u32, signal: Signal) -> bool {
    let raw = i32::try_from(pid).expect("a pid is positive and fits");
    let target = Pid::from_raw(raw).expect("pid 0 would be the whole process group");
    match rustix::process::kill_process(target, signal) {
        Ok(()) => true,
        Err(rustix::io::Errno::SRCH) => false,
        Err(error) => panic!("cannot send {signal:?} to {pid}: {error}"),
    }
}

/// Kills a process and all below it.
pub(crate) fn kill_tree(pid: u32) {
    let below = descendants(pid);
    kill(pid, Signal::KILL);
    for pid in below {
        kill(pid, Signal::KILL);
    }
}

/// Waits until `condition` holds; `false` if it does not within `timeout`.
pub(crate) fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(200);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Every start method, for tests that hold under each of them.
pub(crate) fn start_methods() -> [StartMethod; 3] {
    [
        StartMethod::Fork,
        StartMethod::Spawn,
        StartMethod::Forkserver,
    ]
}

/// Starts a child.
pub(crate) fn start<F, A>(method: StartMethod, target: F, args: A) -> Process<F::Output>
where
    F: bunshin::Target<A>,
    F::Output: Serialize + DeserializeOwned,
    A: Serialize + DeserializeOwned,
{
    let child = Process::builder().start_method(method).start(target, args);
    child.expect("a child can be started")
}

/// Starts a child that ends with this process, also where a test forgets it.
pub(crate) fn start_daemon<F, A>(method: StartMethod, target: F, args: A) -> Process<F::Output>
where
    F: bunshin::Target<A>,
    F::Output: Serialize + DeserializeOwned,
    A: Serialize + DeserializeOwned,
{
    let builder = Process::builder().start_method(method).daemon(true);
    let child = builder.start(target, args);
    child.expect("a child can be started")
}

/// What a child does that is to be ended by others.
pub(crate) fn sleep_for_ever() {
    loop {
        thread::sleep(Duration::from_secs(600));
    }
}

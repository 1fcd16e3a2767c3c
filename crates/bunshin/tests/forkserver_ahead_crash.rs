//! What the forkserver's spare child does before it is needed: it has the pages copied that the
//! children before it wrote to.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use bunshin::{Process, StartMethod, set_forkserver_preload};
use rustix::process::Signal;
use support::{ProcessState, kill, wait_until};

mod support;

const LONG: Duration = Duration::from_secs(30);
const PAGE: usize = 4096;
const N_PAGES: usize = 150;

/// The fixture's guard, for when the forkserver is there already.
fn guard(seconds: u64) -> support::Guard {
    support::guard_after(seconds, support::start_each_way_once)
}

static TABLE: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn load() {
    *TABLE.lock().unwrap() = (0..N_PAGES * PAGE).map(|at| (at / 7) as u8).collect();
}

/// Whether all is as it was loaded; writes to each page.
fn look_and_write() -> bool {
    let mut table = TABLE.lock().unwrap();
    let is_as_loaded = table
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte == (at / 7) as u8);
    for page in table.chunks_mut(PAGE) {
        page[0] ^= 0xff;
    }
    is_as_loaded
}

fn start() -> Process<bool> {
    Process::builder()
        .start_method(StartMethod::Forkserver)
        .start(look_and_write, ())
        .expect("a child can be started")
}

/// The forkserver and its spare child.
fn helpers() -> Vec<u32> {
    let own = std::process::id();
    let is_helper = |pid: &u32| {
        ProcessState::of(*pid)
            .is_some_and(|p| p.comm == "bunshin-fs" && p.state != 'Z' && p.parent == own)
    };
    let mut helpers = support::descendants(own);
    helpers.retain(is_helper);
    helpers
}

/// Bytes of memory that a process shares with nobody and has written to.
fn own_bytes(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    number.unwrap_or(0) * 1024
}

#[test]
fn a_spare_has_copied_what_the_one_before_wrote_to() {
    let _guard = guard(60);
    set_forkserver_preload(load).unwrap();
    for _ in 0..4 {
        assert!(start().result().unwrap());
    }
    // The server itself shares the table with the spare until that has copied it.
    let has_copies = || {
        let helpers = helpers();
        helpers.len() == 2 && helpers.iter().all(|pid| own_bytes(*pid) > N_PAGES * PAGE)
    };
    assert!(
        wait_until(LONG, has_copies),
        "{:?}",
        helpers().into_iter().map(own_bytes).collect::<Vec<_>>()
    );
    assert!(
        start().result().unwrap(),
        "copies are like what they are of"
    );
}

#[test]
fn a_spare_may_be_killed_while_it_copies() {
    let _guard = guard(120);
    set_forkserver_preload(load).unwrap();
    for round in 0..200u64 {
        match start().result() {
            Ok(is_as_loaded) => assert!(is_as_loaded),
            Err(error) => assert!(error.is_lost(), "{error}"),
        }
        // A clone and its copies take a millisecond or so.
        thread::sleep(Duration::from_micros(round * 37 % 1500));
        let helpers = helpers();
        if let Some(pid) = helpers.get(round as usize % helpers.len().max(1)) {
            kill(*pid, Signal::KILL);
        }
    }
    assert!(start().result().unwrap());
}

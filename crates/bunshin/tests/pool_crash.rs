//! What becomes of a pool whose workers are killed, stopped, stuck or crash, and how pools end.
#![allow(
    unsafe_code,
    reason = "tasks that crash, and signals that the crates at hand have no safe form of"
)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{Buffer, ErrorKind, Pool, Process, RawArray, RawValue, StartMethod, TaskError};
use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

fn pool(method: StartMethod, workers: usize) -> Pool {
    let builder = Pool::builder().workers(workers).start_method(method);
    builder.build().expect("a pool can be made")
}

fn double(number: u64) -> u64 {
    number * 2
}

fn nap(number: u64) -> u64 {
    thread::sleep(Duration::from_millis(1));
    number * 2
}

fn signal_self(signal: Signal) {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, signal).expect("it may");
}

fn works(pool: &Pool) {
    let doubled = pool.map(double, 0..100).expect("the pool works");
    assert!(doubled.into_iter().eq((0..100).map(|n| n * 2)));
}

/// The pool has as many workers as it should, and all of them run.
fn is_whole(pool: &Pool) {
    let whole = || {
        let pids = pool.worker_pids();
        pids.len() == pool.workers() && pids.iter().all(|pid| support::is_running(*pid))
    };
    assert!(support::wait_until(Duration::from_secs(5), whole));
}

fn has_state(pid: u32, states: &str) -> bool {
    support::ProcessState::of(pid).is_none_or(|process| states.contains(process.state))
}

// -- killed

const VICTIM: usize = 0;
const KILLED_AT: usize = 1;

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Kills whoever names itself as the victim, and notes when.
fn kill_victim(board: RawArray<u64>) {
    let has_victim = || board.load(VICTIM, SeqCst) != 0;
    assert!(support::wait_until(Duration::from_secs(10), has_victim));
    thread::sleep(Duration::from_millis(20));
    board.store(KILLED_AT, now_ns(), SeqCst);
    support::kill(board.load(VICTIM, SeqCst) as u32, Signal::KILL);
}

#[test]
fn a_worker_killed_in_a_task_costs_that_task() {
    fn work((n, board): (u64, RawArray<u64>)) -> u64 {
        if n == 5 {
            board.store(VICTIM, std::process::id().into(), SeqCst);
            thread::sleep(Duration::from_secs(30));
        }
        n * 2
    }
    support::each_method(|method| {
        for chunk in [1, 4, 100] {
            let pool = pool(method, 3);
            let board = RawArray::new(2).expect("an array");
            let killer = Process::start(kill_victim, (board.clone(),)).expect("a child");
            let items = (0..40).map(|n| (n, board.clone()));
            let mut results = pool.batch().chunk_size(chunk).map_each(work, items);
            let took = Duration::from_nanos(now_ns() - board.load(KILLED_AT, SeqCst));
            assert!(took < Duration::from_secs(5), "{took:?}");
            match results.remove(5) {
                Err(TaskError::Lost(lost)) => {
                    assert_eq!(u64::from(lost.pid()), board.get(VICTIM));
                    assert_eq!(lost.task(), Some(5));
                    assert_eq!(lost.status().and_then(|s| s.signal()), Some(9));
                    assert!(!lost.name().is_empty());
                }
                other => panic!("{other:?}"),
            }
            let rest: Vec<_> = results.into_iter().map(|r| r.expect("it lives")).collect();
            assert!(
                rest.into_iter()
                    .eq((0..40).filter(|n| *n != 5).map(|n| n * 2))
            );
            killer.result().expect("no panic");
            is_whole(&pool);
            works(&pool);
        }
    });
}

#[test]
fn idle_workers_are_replaced_however_many_die() {
    support::each_method(|method| {
        let pool = pool(method, 4);
        works(&pool);
        for round in 0..15 {
            let before = pool.worker_pids();
            thread::sleep(Duration::from_millis(2));
            for pid in &before {
                support::kill(*pid, Signal::KILL);
            }
            let dead = || before.iter().all(|pid| !support::is_running(*pid));
            assert!(support::wait_until(Duration::from_secs(5), dead));
            if round % 3 == 0 {
                is_whole(&pool);
            }
            works(&pool);
            is_whole(&pool);
            assert!(pool.worker_pids().iter().all(|pid| !before.contains(pid)));
        }
    });
}

// What the board of a killer holds.
const MODE: usize = 0;
const KILLS: usize = 1;
const PARENT: usize = 2;
const REST: u64 = 1;
const RESTING: u64 = 2;
const KILL: u64 = 3;
const QUIT: u64 = 4;

/// Kills random children of the board's owner while it may, but never itself.
fn kill_at_random(board: RawArray<u64>) {
    let parent = board.load(PARENT, SeqCst);
    let list = format!("/proc/{parent}/task/{parent}/children");
    let mut random = now_ns() | 1;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    loop {
        match board.load(MODE, SeqCst) {
            QUIT => return,
            KILL => {}
            _ => {
                board.store(MODE, RESTING, SeqCst);
                while board.load(MODE, SeqCst) == RESTING {
                    thread::sleep(Duration::from_micros(100));
                }
                continue;
            }
        }
        thread::sleep(Duration::from_micros(next(6000)));
        let list = std::fs::read_to_string(&list).expect("the parent lives");
        let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
        let is_worker = |pid: &u32| {
            let state = support::ProcessState::of(*pid);
            let is_other = |state: support::ProcessState| !state.is_helper();
            *pid != std::process::id() && state.is_some_and(is_other)
        };
        let workers: Vec<u32> = pids.filter(is_worker).collect();
        if workers.is_empty() || board.load(MODE, SeqCst) != KILL {
            continue;
        }
        let victim = workers[next(workers.len() as u64) as usize];
        if support::kill(victim, Signal::KILL) {
            board.fetch_add(KILLS, 1, SeqCst);
        }
    }
}

/// Counts a map's lost tasks; all others are right.
fn count_lost<R>(results: Vec<Result<R, TaskError>>, is_right: impl Fn(u64, R) -> bool) -> u64 {
    let mut lost = 0;
    for (n, result) in (0..).zip(results) {
        match result {
            Ok(result) => assert!(is_right(n, result), "item {n} is wrong"),
            Err(TaskError::Lost(end)) => {
                lost += 1;
                assert_eq!(end.status().and_then(|s| s.signal()), Some(9), "{end}");
                assert_eq!(end.task(), Some(n as usize));
            }
            Err(other) => panic!("item {n}: {other:?}"),
        }
    }
    lost
}

fn sum(numbers: Buffer<u64>) -> u64 {
    numbers.iter().sum()
}

fn fill(n: u64) -> Buffer<u64> {
    Buffer::from(vec![n; 30_000])
}

fn make_value(n: u64) -> (RawValue<u64>, RawValue<u64>) {
    (
        RawValue::new(n).expect("a value"),
        RawValue::new(n + 1).expect("a value"),
    )
}

fn read_value((value, n): (RawValue<u64>, u64)) -> u64 {
    value.get() + n
}

#[test]
fn two_hundred_kills_at_random_moments() {
    support::each_method(|method| {
        let board = RawArray::new(3).expect("an array");
        board.set(PARENT, std::process::id().into());
        let killer = Process::builder()
            .start_method(StartMethod::Spawn)
            .daemon(true);
        let killer = killer
            .start(kill_at_random, (board.clone(),))
            .expect("a child");
        let pool = pool(method, 3);
        let value = RawValue::new(1000u64).expect("a value");
        works(&pool);
        is_whole(&pool);
        let before = support::open_descriptors(std::process::id());
        let children = support::descendants(std::process::id()).len();
        let mut lost = 0;
        for round in 0.. {
            if board.load(KILLS, SeqCst) >= 200 {
                break;
            }
            board.store(MODE, KILL, SeqCst);
            let batch = pool.batch().chunk_size([1, 7, 64][round % 3]);
            lost += match round % 5 {
                0 => count_lost(batch.map_each(double, 0..4000), |n, r| r == n * 2),
                1 => count_lost(batch.map_each(nap, 0..60), |n, r| r == n * 2),
                2 => {
                    let items = (0..100).map(|n| Buffer::from(vec![n; 30_000]));
                    count_lost(batch.map_each(sum, items), |n, r| r == n * 30_000)
                }
                3 => {
                    let is_right = |n, buffer: Buffer<u64>| {
                        buffer.len() == 30_000 && buffer.iter().all(|x| *x == n)
                    };
                    count_lost(batch.map_each(fill, 0..100), is_right)
                }
                _ => {
                    let items = (0..300).map(|n| (value.clone(), n));
                    let lost = count_lost(batch.map_each(read_value, items), |n, r| r == 1000 + n);
                    let results = pool.map_each(make_value, 0..300);
                    lost + count_lost(results, |n, (a, b)| (a.get(), b.get()) == (n, n + 1))
                }
            };
            board.store(MODE, REST, SeqCst);
            let rests = || board.load(MODE, SeqCst) == RESTING;
            assert!(support::wait_until(Duration::from_secs(5), rests));
            let kills = board.load(KILLS, SeqCst);
            assert!(lost <= kills, "{lost} tasks lost by {kills} kills");
            works(&pool);
            is_whole(&pool);
            let is_back = || support::open_descriptors(std::process::id()) <= before;
            let has_leaked = !support::wait_until(Duration::from_secs(1), is_back);
            let now = support::open_descriptors(std::process::id());
            assert!(
                !has_leaked,
                "round {round}: {now} descriptors, before {before}"
            );
            // The forkserver's spare child may be there at one time and not yet at the other.
            let now = support::descendants(std::process::id()).len();
            assert!(now.abs_diff(children) <= 1, "{now} children, {children}");
        }
        board.store(MODE, QUIT, SeqCst);
        killer.result().expect("no panic");
    });
}

#[test]
fn workers_killed_while_they_start() {
    support::each_method(|method| {
        for round in 0..25u64 {
            let pool = pool(method, 3);
            thread::sleep(Duration::from_micros(round * round * 12));
            let mut kills = 0;
            for pid in pool.worker_pids().into_iter().skip(round as usize % 2) {
                kills += u64::from(support::kill(pid, Signal::KILL));
            }
            let lost = count_lost(pool.map_each(double, 0..50), |n, r| r == n * 2);
            assert!(lost <= kills);
            is_whole(&pool);
            works(&pool);
        }
    });
}

/// Dies as its worker encodes it, right after its buffer has been put beside the result.
struct Fatal(Buffer<u8>);

impl Serialize for Fatal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let result = self.0.serialize(serializer);
        signal_self(Signal::KILL);
        result
    }
}

impl<'de> Deserialize<'de> for Fatal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Buffer::deserialize(deserializer).map(Self)
    }
}

/// The memory behind the open segments of this process, in bytes.
fn segment_bytes() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    let segments = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = std::fs::read_link(&path).ok()?;
        let is_ours = target.to_string_lossy().contains("memfd:bunshin");
        std::fs::metadata(path).ok().filter(|_| is_ours)
    });
    segments.map(|segment| segment.blocks() * 512).sum()
}

#[test]
fn what_dead_workers_held_is_used_again() {
    fn die_with_item(item: Buffer<u8>) -> usize {
        signal_self(Signal::KILL);
        item.len()
    }
    fn die_with_result(len: usize) -> Fatal {
        Fatal(Buffer::from(vec![7; len]))
    }
    fn die_with_handles(values: Vec<RawValue<u64>>) -> usize {
        signal_self(Signal::KILL);
        values.len()
    }
    const LEN: usize = 4 << 20;
    support::each_method(|method| {
        let pool = pool(method, 2);
        works(&pool);
        is_whole(&pool);
        let descriptors = support::open_descriptors(std::process::id());
        let value = RawValue::new(1u64).expect("a value");
        for _ in 0..12 {
            let results = pool.map_each(die_with_item, vec![Buffer::from(vec![1u8; LEN]); 4]);
            assert!(
                results
                    .iter()
                    .all(|r| r.as_ref().is_err_and(TaskError::is_lost))
            );
            let results = pool.map_each(die_with_result, [LEN; 4]);
            assert!(
                results
                    .iter()
                    .all(|r| r.as_ref().is_err_and(TaskError::is_lost))
            );
            let results = pool.map_each(die_with_handles, vec![vec![value.clone(); 10]; 3]);
            assert!(
                results
                    .iter()
                    .all(|r| r.as_ref().is_err_and(TaskError::is_lost))
            );
        }
        let bytes = segment_bytes();
        assert!(bytes < 100 << 20, "{} MiB after the deaths", bytes >> 20);
        drop(value);
        works(&pool);
        is_whole(&pool);
        assert_eq!(support::open_descriptors(std::process::id()), descriptors);
    });
}

#[test]
fn a_worker_without_descriptors_does_no_harm() {
    fn close_all(n: u64) -> u64 {
        if n == 20 {
            for fd in 3..1000 {
                // SAFETY: none; a task that breaks everything it can reach is the purpose.
                unsafe { libc::close(fd) };
            }
        }
        n * 2
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        for _ in 0..5 {
            for (n, result) in (0..).zip(pool.map_each(close_all, 0..200)) {
                match result {
                    Ok(result) => assert_eq!(result, n * 2),
                    Err(error) => assert!(n == 20, "{n}: {error}"),
                }
            }
            works(&pool);
        }
        is_whole(&pool);
    });
}

// -- stopped

#[test]
fn a_stopped_worker_holds_up_its_own_task_only() {
    fn stop_once(n: u64) -> u64 {
        if n == 3 {
            signal_self(Signal::STOP);
        }
        n * 2
    }
    fn wake_stopped(parent: u32) {
        let stopped = || {
            let children = support::descendants(parent);
            let is_stopped = |pid: &u32| {
                support::ProcessState::of(*pid).is_some_and(|process| process.state == 'T')
            };
            children.into_iter().find(is_stopped)
        };
        assert!(support::wait_until(Duration::from_secs(10), || stopped().is_some()));
        thread::sleep(Duration::from_millis(100));
        support::kill(stopped().expect("it sleeps still"), Signal::CONT);
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        works(&pool);
        for chunk in [1, 3] {
            let waker = Process::start(wake_stopped, (std::process::id(),)).expect("a child");
            let mut done_while_stopped = 0;
            let batch = pool.batch().chunk_size(chunk);
            let batch = batch.progress(|done, _| {
                if done < 500 {
                    done_while_stopped = done;
                }
            });
            let results = batch
                .map(stop_once, 0..500)
                .expect("all are run in the end");
            assert!(results.into_iter().eq((0..500).map(|n| n * 2)));
            // The stopped one holds a chunk at most.
            assert!(done_while_stopped >= 500 - chunk, "{done_while_stopped}");
            waker.result().expect("no panic");
        }
    });
}

/// A worker that spins for work looks as if it would take the next task.
#[test]
fn a_worker_stopped_while_it_waits_holds_up_nobody() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        works(&pool);
        for round in 0..150usize {
            assert_eq!(pool.map(double, [1, 2]).expect("both work"), [2, 4]);
            let stopped = pool.worker_pids()[round % 2];
            support::kill(stopped, Signal::STOP);
            let has_stopped = || has_state(stopped, "T");
            assert!(support::wait_until(Duration::from_secs(5), has_stopped));
            // Long enough for the other one to fall asleep.
            thread::sleep(Duration::from_millis(1));
            assert_eq!(pool.map(double, [3]).expect("the other works"), [6]);
            assert!(pool.map(double, 0..10).expect("the other works").len() == 10);
            support::kill(stopped, Signal::CONT);
        }
    });
}

#[test]
fn a_task_may_end_its_worker_in_any_way() {
    fn deep(n: u64) -> u64 {
        let page = std::hint::black_box([n; 512]);
        if n == u64::MAX {
            n
        } else {
            deep(n + 1) + page[(n % 512) as usize]
        }
    }
    fn end(how: u64) -> u64 {
        match how {
            1 => std::process::exit(0),
            2 => std::process::exit(7),
            3 => std::process::abort(),
            4 => {
                let nowhere = std::hint::black_box(std::ptr::without_provenance_mut::<u8>(8));
                // SAFETY: none; the crash is the purpose.
                unsafe { nowhere.write_volatile(1) };
                how
            }
            5 => deep(1),
            n => n,
        }
    }
    support::each_method(|method| {
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        rustix::process::setrlimit(Resource::Core, none).expect("it may be lowered");
        let pool = pool(method, 2);
        let results = pool.map_each(end, 0..40);
        for (n, result) in (0..).zip(&results) {
            if !(1..=5).contains(&n) {
                assert_eq!(result.as_ref().ok(), Some(&n));
                continue;
            }
            let Err(TaskError::Lost(lost)) = result else {
                panic!("{n}: {result:?}")
            };
            assert_eq!(lost.task(), Some(n as usize));
            let status = lost.status().expect("it was collected");
            match n {
                1 => assert_eq!(status.code(), Some(0)),
                2 => assert_eq!(status.code(), Some(7)),
                3 => assert_eq!(status.signal(), Some(6)),
                4 => assert_eq!(status.signal(), Some(11)),
                _ => assert!([Some(6), Some(11)].contains(&status.signal()), "{status}"),
            }
        }
        works(&pool);
        assert_eq!(pool.worker_pids().len(), 2);
    });
}

// -- ends

fn is_closed(pool: &Pool) {
    match pool.map(double, 0..3) {
        Err(TaskError::Pool(error)) => assert_eq!(error.kind(), ErrorKind::Closed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pool_ends_in_every_order_of_calls() {
    support::each_method(|method| {
        for order in "- c cj ccjj ctj tj tcj ttjj cjt tjc jtj jcj".split(' ') {
            for has_worked in [false, true] {
                let pool = pool(method, 2);
                if has_worked {
                    works(&pool);
                }
                let mut is_open = true;
                for call in order.chars() {
                    match call {
                        'c' => pool.close(),
                        't' => pool.terminate(),
                        'j' if is_open => {
                            let error = pool.join().expect_err("an open pool");
                            assert_eq!(error.kind(), ErrorKind::InvalidInput);
                            works(&pool);
                        }
                        'j' => {
                            pool.join().expect("it is closed");
                            assert!(pool.worker_pids().is_empty(), "{order}");
                        }
                        _ => {}
                    }
                    is_open &= !"ct".contains(call);
                    if !is_open {
                        is_closed(&pool);
                    }
                }
            }
        }
    });
}

#[test]
fn terminate_cancels_the_maps_of_other_threads() {
    support::each_method(|method| {
        for workers in [1, 3] {
            let pool = pool(method, workers);
            works(&pool);
            thread::scope(|scope| {
                let maps = [20_000, 5].map(|len| {
                    let pool = &pool;
                    scope.spawn(move || pool.map_each(nap, 0..len))
                });
                thread::sleep(Duration::from_millis(60));
                let start = Instant::now();
                pool.terminate();
                let mut cancelled = 0;
                for map in maps {
                    for (n, result) in (0..).zip(map.join().expect("no panic")) {
                        match result {
                            Ok(doubled) => assert_eq!(doubled, n * 2),
                            Err(TaskError::Cancelled) => cancelled += 1,
                            Err(other) => panic!("{n}: {other}"),
                        }
                    }
                }
                assert!(cancelled > 10_000, "{cancelled}");
                assert!(
                    start.elapsed() < Duration::from_secs(5),
                    "{:?}",
                    start.elapsed()
                );
            });
            pool.join().expect("it is terminated");
        }
    });
}

#[test]
fn close_lets_a_map_that_is_under_way_finish() {
    support::each_method(|method| {
        for joins in [true, false] {
            let pool = pool(method, 2);
            let workers = pool.worker_pids();
            works(&pool);
            thread::scope(|scope| {
                let map = scope.spawn(|| pool.map(nap, 0..2500));
                thread::sleep(Duration::from_millis(60));
                pool.close();
                if joins {
                    pool.join().expect("it is closed");
                }
                let results = map.join().expect("no panic").expect("all were run");
                assert!(results.into_iter().eq((0..2500).map(|n| n * 2)));
            });
            let all_gone = || !workers.iter().any(|pid| support::is_running(*pid));
            assert!(
                support::wait_until(Duration::from_secs(5), all_gone),
                "joined: {joins}"
            );
        }
    });
}

fn stick(how: u8) {
    match how {
        0 => {}
        1 => loop {
            std::hint::spin_loop();
        },
        2 => loop {
            block_sigterm();
            thread::sleep(Duration::from_secs(1));
        },
        _ => {
            signal_self(Signal::STOP);
        }
    }
}

fn block_sigterm() {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is written before it is read.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM) };
    // SAFETY: the set is initialised, and no old one is asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
}

#[test]
fn a_pool_with_stuck_workers_can_be_dropped() {
    support::each_method(|method| {
        let pool = pool(method, 4);
        let workers = pool.worker_pids();
        // The map is left by a panic, so that the tasks are stuck when the pool is dropped.
        let report = |done, _| {
            if done > 0 {
                thread::sleep(Duration::from_millis(100));
                panic!("enough");
            }
        };
        let batch = pool.batch().progress(report);
        let map = catch_unwind(AssertUnwindSafe(|| batch.map(stick, [0, 1, 2, 3, 1])));
        assert!(map.is_err());
        let start = Instant::now();
        drop(pool);
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        assert!(!workers.iter().any(|pid| support::is_running(*pid)));
    });
}

#[test]
fn no_worker_outlives_a_killed_parent() {
    fn parent(method: String, is_up: RawArray<u32>) {
        let pool = pool(method.parse().expect("it is one"), 5);
        works(&pool);
        is_up.store(0, 1, SeqCst);
        let _ = pool.map(stick, [1, 2, 3, 1, 0, 0]);
    }
    support::each_method(|method| {
        for wait_ms in [0, 30, 100] {
            let is_up = RawArray::new(1).expect("an array");
            let arguments = (method.to_string(), is_up.clone());
            let child = Process::start(parent, arguments).expect("a child");
            let up = || is_up.load(0, SeqCst) == 1;
            assert!(support::wait_until(Duration::from_secs(10), up));
            thread::sleep(Duration::from_millis(wait_ms));
            let below = support::descendants(child.pid());
            assert!(below.len() >= 5, "{below:?}");
            child.kill().expect("it may");
            let all_gone = || !below.iter().any(|pid| support::is_running(*pid));
            assert!(
                support::wait_until(Duration::from_secs(3), all_gone),
                "{below:?}"
            );
            assert_eq!(child.join().expect("it ended").signal(), Some(9));
        }
    });
}

//! The pool as its users meet it: order, payloads, initializers, failing tasks, threads, and
//! every way to end one. What kills do to it is in `pool_crash.rs`.
#![allow(
    unsafe_code,
    reason = "tasks that crash, and signals that the crates at hand have no safe form of"
)]

mod support;

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{
    Buffer, ErrorKind, Lock, Pool, Process, RawValue, Receiver, StartMethod, TaskError, Value,
    channel,
};
use rustix::process::{Resource, Rlimit, Signal};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

fn pool(method: StartMethod, workers: usize) -> Pool {
    let builder = Pool::builder().workers(workers).start_method(method);
    builder.build().expect("a pool can be made")
}

fn own_pid(_: u64) -> u32 {
    std::process::id()
}

fn double(number: u64) -> u64 {
    number * 2
}

fn uneven(number: u64) -> u64 {
    if number % 17 == 0 {
        thread::sleep(Duration::from_micros(500));
    }
    number * 2
}

fn kill_self() {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, Signal::KILL).expect("it may");
}

fn works(pool: &Pool) {
    let doubled = pool.map(double, 0..100).expect("the pool works");
    assert!(doubled.into_iter().eq((0..100).map(|n| n * 2)));
}

// -- order, chunks, progress

#[test]
fn map_keeps_the_order() {
    support::each_method(|method| {
        let pool = pool(method, 3);
        for len in [0, 1, 2, 63, 64, 65, 1023, 1024, 1025, 100_000] {
            let results = pool.map(double, 0..len).expect("all succeed");
            assert!(results.into_iter().eq((0..len).map(|n| n * 2)), "{len}");
        }
        let results = pool.map(uneven, 0..2000).expect("all succeed");
        assert!(results.into_iter().eq((0..2000).map(|n| n * 2)));
    });
}

#[test]
fn any_chunk_size_gives_the_same_and_progress_only_grows() {
    support::each_method(|method| {
        let pool = pool(method, 3);
        for chunk in [0, 1, 7, 10_000, usize::MAX] {
            let mut reports = Vec::new();
            let report = |done, total| reports.push((done, total));
            let batch = pool.batch().chunk_size(chunk).progress(report);
            let results = batch.map(uneven, 0..3000).expect("all succeed");
            assert!(results.into_iter().eq((0..3000).map(|n| n * 2)), "{chunk}");
            assert!(reports.is_sorted(), "{reports:?}");
            assert_eq!(reports.last(), Some(&(3000, 3000)));
        }
        let mut reports = Vec::new();
        let batch = pool
            .batch()
            .progress(|done, total| reports.push((done, total)));
        // A length that nobody knows beforehand.
        let items = (0..2500).filter(|n| n % 2 == 0);
        assert_eq!(batch.map(double, items).map(|r| r.len()).ok(), Some(1250));
        assert!(reports.iter().all(|(done, total)| done <= total));
        assert_eq!(reports.last(), Some(&(1250, 1250)));
    });
}

#[test]
fn items_are_taken_as_they_are_needed() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let (pulled, done, most) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let items = (0..20_000).inspect(|_| {
            pulled.set(pulled.get() + 1);
            most.set(most.get().max(pulled.get() - done.get()));
        });
        let batch = pool.batch().progress(|now, _| done.set(now));
        assert_eq!(batch.map(double, items).expect("all succeed").len(), 20_000);
        assert!(most.get() <= 2100, "{} items ahead", most.get());
    });
}

// -- payloads

#[test]
fn texts_of_any_length_go_and_come() {
    fn turn(text: String) -> String {
        text.chars().rev().collect()
    }
    fn same(text: String) -> String {
        text
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        let lens = (0..70)
            .chain(150..300)
            .chain([4095, 4096, 4097, 65_535, 65_536, 1 << 20]);
        let texts: Vec<_> = lens.map(|len| "ab".repeat(len)).collect();
        let turned = pool.map(turn, texts.clone()).expect("all succeed");
        assert!(
            turned
                .iter()
                .zip(&texts)
                .all(|(a, b)| *a == turn(b.clone()))
        );
        let huge = ["x".repeat(64 << 20), String::new(), "y".repeat(64 << 20)];
        assert!(pool.map(same, huge.clone()).expect("all succeed") == huge);
    });
}

/// Puts the same buffer into a message twice.
struct Twice(Buffer<u32>, Buffer<u32>);

impl Serialize for Twice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.0, &self.0, &self.1).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Twice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (first, second, _) = <(_, _, Buffer<u32>)>::deserialize(deserializer)?;
        Ok(Self(first, second))
    }
}

#[test]
fn buffers_go_come_stay_and_come_twice() {
    static KEPT: Mutex<Vec<Buffer<u64>>> = Mutex::new(Vec::new());
    fn scale(mut buffer: Buffer<f64>) -> Buffer<f64> {
        buffer.as_mut_slice().iter_mut().for_each(|x| *x *= 2.0);
        buffer
    }
    /// Keeps what it gets, and gives how many of the kept have changed.
    fn keep(buffer: Buffer<u64>) -> usize {
        let mut kept = KEPT.lock().expect("nobody panicked");
        kept.push(buffer);
        let is_same = |b: &&Buffer<u64>| b.iter().any(|x| *x != b[0]);
        kept.iter().filter(is_same).count()
    }
    fn twice(buffer: Buffer<u32>) -> Twice {
        Twice(buffer, Buffer::default())
    }
    fn sums(buffers: Vec<Buffer<u16>>) -> Vec<u64> {
        buffers
            .iter()
            .map(|b| b.iter().map(|x| u64::from(*x)).sum())
            .collect()
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        let lens = [0, 1, 511, 512, 513, 8192, 100_000, 1 << 20, 8 << 20];
        let results = pool.map(scale, lens.map(|len| Buffer::from(vec![1.5; len])));
        let results = results.expect("all succeed");
        for (len, result) in lens.iter().zip(&results) {
            assert!(
                result.len() == *len && result.iter().all(|x| *x == 3.0),
                "{len}"
            );
        }
        let again = pool.map(scale, results).expect("all succeed");
        let fours = again
            .iter()
            .map(|b| b.iter().filter(|x| **x == 6.0).count());
        assert!(fours.eq(lens));

        let items = (0..150).map(|n| Buffer::from(vec![n; 8192]));
        let changed = pool.map(keep, items).expect("all succeed");
        assert!(changed.iter().all(|n| *n == 0), "{changed:?}");

        let items = (0..20).map(|n| Buffer::from(vec![n; 20_000]));
        let held: Vec<Twice> = pool.map(twice, items).expect("all succeed");
        works(&pool);
        for (n, Twice(first, second)) in (0..).zip(held) {
            let all = [first, second].map(|mut b| {
                b.as_mut_slice()[0] = n;
                b.len() == 20_000 && b.iter().all(|x| *x == n)
            });
            assert_eq!(all, [true, true], "{n}");
        }

        let many: Vec<_> = (0..2000u16).map(|n| Buffer::from(vec![n; 2500])).collect();
        let sums = pool.map(sums, [many, Vec::new()]).expect("all succeed");
        assert!(sums[0].iter().copied().eq((0..2000).map(|n| n * 2500)));
        assert!(sums[1].is_empty());
    });
}

#[test]
fn handles_go_in_items_and_come_in_results() {
    fn make(n: u64) -> (Receiver<String>, Value<u64>, Lock) {
        let (tx, rx) = channel().expect("a channel");
        tx.send(format!("from task {n}"))
            .expect("the reader is here");
        (
            rx,
            Value::new(n).expect("a value"),
            Lock::new().expect("a lock"),
        )
    }
    fn add_all(values: Vec<Value<u64>>) -> usize {
        for value in &values {
            *value.lock().expect("free") += 1;
        }
        values.len()
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        let made = pool.map(make, 0..20).expect("all succeed");
        for (n, (rx, value, lock)) in (0..20).zip(made) {
            assert_eq!(rx.recv().expect("it was sent"), format!("from task {n}"));
            assert_eq!(value.get().expect("free"), n);
            drop(lock.lock().expect("free"));
        }
        let values: Vec<_> = (0..300).map(|n| Value::new(n).expect("a value")).collect();
        let counts = pool.map(add_all, [values.clone(), values.clone(), Vec::new()]);
        assert_eq!(counts.expect("all succeed"), [300, 300, 0]);
        for (n, value) in values.iter().enumerate() {
            assert_eq!(value.get().expect("free"), n as u64 + 2);
        }
    });
}

/// A value in every item is how counters are usually passed; a process may have 1,024 files
/// open by default, and there are as many tasks outstanding.
#[test]
fn one_handle_in_each_of_many_items_is_not_too_much() {
    fn count((counter, n): (RawValue<u64>, u64)) -> u64 {
        counter.fetch_add(1, Ordering::Relaxed);
        n
    }
    support::each_method(|method| {
        let limit = Rlimit {
            current: Some(1024),
            maximum: Some(1024),
        };
        rustix::process::setrlimit(Resource::Nofile, limit).expect("it may be lowered");
        let pool = pool(method, 2);
        let counter = RawValue::new(0u64).expect("a value");
        let items = (0..3000).map(|n| (counter.clone(), n));
        let results = pool.map_each(count, items);
        let failed: Vec<_> = results.iter().filter_map(|r| r.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} failed: {}", failed.len(), failed[0]);
        assert_eq!(counter.get(), 3000);
    });
}

// -- initializers and limits of tasks

type Gift = (Value<u64>, Lock, Buffer<f64>, String);
static GIFT: OnceLock<Gift> = OnceLock::new();

#[test]
fn an_initializer_runs_once_in_every_worker() {
    fn accept(count: Value<u64>, lock: Lock, numbers: Buffer<f64>, text: String) {
        *count.lock().expect("free") += 1;
        assert!(
            GIFT.set((count, lock, numbers, text)).is_ok(),
            "a second time"
        );
    }
    fn check(n: u64) -> (u64, f64, String) {
        let (_, lock, numbers, text) = GIFT.get().expect("the initializer ran");
        let _held = lock.lock().expect("nobody died");
        (n, numbers.iter().sum(), text.clone())
    }
    support::each_method(|method| {
        let count = Value::new(0).expect("a value");
        let (lock, numbers) = (
            Lock::new().expect("a lock"),
            Buffer::from(vec![0.5; 50_000]),
        );
        let gift = (count.clone(), lock, numbers, "text".repeat(100));
        let builder = Pool::builder().workers(3).start_method(method);
        let pool = builder.initializer(accept, gift).build().expect("a pool");
        let expected = |n| (n, 25_000.0, "text".repeat(100));
        for _ in 0..3 {
            let results = pool.map(check, 0..200).expect("all succeed");
            assert!(results.into_iter().eq((0..200).map(expected)));
        }
        let all_started = || count.get().is_ok_and(|count| count == 3);
        assert!(support::wait_until(Duration::from_secs(10), all_started));
        kill_one(&pool);
        let results = pool.map(check, 0..200).expect("idle workers lose nothing");
        assert_eq!(results.len(), 200);
        let replaced = || count.get().is_ok_and(|count| count == 4);
        assert!(support::wait_until(Duration::from_secs(10), replaced));
    });
}

fn kill_one(pool: &Pool) {
    let victim = pool.worker_pids()[0];
    support::kill(victim, Signal::KILL);
    assert!(support::wait_until(Duration::from_secs(5), || {
        !support::is_running(victim)
    }));
}

#[test]
fn a_failing_initializer_breaks_the_pool_and_not_the_machine() {
    fn fail(starts: RawValue<u32>, how: u8) {
        starts.fetch_add(1, Ordering::SeqCst);
        match how {
            0 => panic!("no way to prepare"),
            1 => std::process::exit(0),
            2 => std::process::exit(9),
            _ => kill_self(),
        }
    }
    support::each_method(|method| {
        for how in 0..4 {
            let starts = RawValue::new(0).expect("a value");
            let builder = Pool::builder().workers(2).start_method(method);
            let pool = builder
                .initializer(fail, (starts.clone(), how))
                .build()
                .expect("a pool");
            for results in [pool.map_each(double, 0..5), pool.map_each(double, 0..1500)] {
                for result in results {
                    match result {
                        Err(TaskError::Pool(error)) => {
                            assert_eq!(error.kind(), ErrorKind::Initializer, "{how}: {error}");
                            let says_why = error.to_string().contains("no way to prepare");
                            assert_eq!(says_why, how == 0, "{error}");
                        }
                        other => panic!("{how}: {other:?}"),
                    }
                }
            }
            let before = starts.get();
            thread::sleep(Duration::from_millis(50));
            // The other worker may have been on its way.
            assert!(starts.get() <= before + 1, "workers are started for ever");
            assert!(before < 100, "{before} starts");
            if how % 2 == 0 {
                pool.close();
                pool.join().expect("it can be joined");
            }
        }
    });
}

#[test]
fn unlucky_starts_are_made_good() {
    fn stumble(starts: RawValue<u32>) {
        if starts.fetch_add(1, Ordering::SeqCst) < 6 {
            kill_self();
        }
    }
    support::each_method(|method| {
        let starts = RawValue::new(0).expect("a value");
        let builder = Pool::builder().workers(2).start_method(method);
        let pool = builder
            .initializer(stumble, (starts,))
            .build()
            .expect("a pool");
        works(&pool);
    });
}

#[test]
fn workers_retire_and_nothing_is_lost() {
    fn pid_and_handle(n: u64) -> (u32, RawValue<u64>, String) {
        (
            std::process::id(),
            RawValue::new(n).expect("a value"),
            "long".repeat(200),
        )
    }
    support::each_method(|method| {
        for (most, chunk) in [(1, 1), (3, 1), (3, 100), (0, 1)] {
            let builder = Pool::builder().workers(2).start_method(method);
            let pool = builder.max_tasks_per_child(most).build().expect("a pool");
            let batch = pool.batch().chunk_size(chunk);
            let results = batch.map(pid_and_handle, 0..30).expect("all succeed");
            let mut tasks = HashMap::new();
            for (n, (pid, value, text)) in (0..).zip(results) {
                assert_eq!((value.get(), text.len()), (n, 800));
                *tasks.entry(pid).or_insert(0) += 1;
            }
            assert!(
                tasks.values().all(|n| *n <= most.max(1)),
                "{most}: {tasks:?}"
            );
            works(&pool);
        }
    });
}

// -- tasks that fail

#[test]
fn a_panic_is_the_tasks_own() {
    fn panics(how: u64) -> u64 {
        match how {
            1 => panic!("plain words"),
            2 => panic!("made {how} fit"),
            3 => std::panic::panic_any(7u8),
            4 => "no number".parse().expect("a value"),
            5 => panic!("{}", "long ".repeat(100_000)),
            n => n,
        }
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        let before = pool.worker_pids();
        let results = pool.map_each(panics, 0..50);
        for (n, result) in (0..).zip(&results) {
            let expected = match n {
                1 => "plain words",
                2 => "made 2 fit",
                3 => "",
                4 => "a value: ",
                5 => "long long",
                _ => {
                    assert_eq!(result.as_ref().ok(), Some(&n));
                    continue;
                }
            };
            let Err(TaskError::Panicked(panic)) = result else {
                panic!("{n}: {result:?}")
            };
            assert!(
                panic.message().contains(expected),
                "{n}: {}",
                panic.message()
            );
            let place = panic.location().expect("it has a place");
            assert!(place.contains("pool.rs:"), "{place}");
        }
        match pool.map(panics, 0..50) {
            Err(TaskError::Panicked(panic)) => assert_eq!(panic.message(), "plain words"),
            other => panic!("{other:?}"),
        }
        works(&pool);
        assert_eq!(pool.worker_pids(), before, "no worker is worse for it");
    });
}

/// A number that fails on its way as its first part says.
#[derive(Debug)]
struct Fragile(u8, u64);

const OUT: (u8, u8) = (1, 2);
const IN: (u8, u8) = (3, 4);

impl Serialize for Fragile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            how if how == OUT.0 => panic!("panicked on the way out"),
            how if how == OUT.1 => Err(S::Error::custom("refused on the way out")),
            _ => (self.0, self.1, Buffer::from(vec![1u8; 9000])).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (how, number, _) = <(_, _, Buffer<u8>)>::deserialize(deserializer)?;
        match how {
            how if how == IN.0 => panic!("panicked on the way in"),
            how if how == IN.1 => Err(D::Error::custom("refused on the way in")),
            _ => Ok(Self(how, number)),
        }
    }
}

fn give(how: u8) -> Fragile {
    Fragile(how, 5)
}

fn accept(Fragile(_, number): Fragile) -> u64 {
    number
}

#[test]
fn what_cannot_be_coded_fails_alone() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        // In the worker both a panic and an error; here errors.
        for _ in 0..50 {
            let items = [0, OUT.1, IN.0, IN.1, 0].map(|how| Fragile(how, 5));
            let results = pool.map_each(accept, items);
            assert!(matches!(results[0], Ok(5)) && matches!(results[4], Ok(5)));
            for (result, words) in results[1..4].iter().zip(["refused", "panicked", "refused"]) {
                let Err(TaskError::Arguments(error)) = result else {
                    panic!("{result:?}")
                };
                assert!(error.to_string().contains(words), "{error}");
            }
            let results = pool.map_each(give, [0, OUT.0, OUT.1, IN.1, 0]);
            assert!(matches!(results[0], Ok(Fragile(0, 5))));
            assert!(matches!(results[4], Ok(Fragile(0, 5))));
            for (result, words) in results[1..4].iter().zip(["panicked", "refused", "refused"]) {
                let Err(TaskError::Result(error)) = result else {
                    panic!("{result:?}")
                };
                assert!(error.to_string().contains(words), "{error}");
            }
        }
        works(&pool);
    });
}

#[test]
fn a_panic_while_coding_here_fails_its_item() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        for _ in 0..30 {
            let items = [0, OUT.0, 0].map(|how| Fragile(how, 5));
            let results = catch_unwind(AssertUnwindSafe(|| pool.map_each(accept, items)));
            let results = results.expect("the item's panic is not the map's");
            assert!(
                matches!(results[1], Err(TaskError::Arguments(_))),
                "{results:?}"
            );
            assert!(matches!(results[..], [Ok(5), _, Ok(5)]), "{results:?}");
            let results = catch_unwind(AssertUnwindSafe(|| pool.map_each(give, [0, IN.0, 0])));
            let results = results.expect("the result's panic is not the map's");
            assert!(
                matches!(results[1], Err(TaskError::Result(_))),
                "{results:?}"
            );
            assert!(matches!(results[..], [Ok(_), _, Ok(_)]), "{results:?}");
        }
        works(&pool);
    });
}

/// Whatever a panic in the caller's own code does to its map, the pool must live on.
#[test]
fn panics_of_the_caller_cost_the_pool_nothing() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        for round in 0..40 {
            let items = (0..2000).inspect(|n| assert!(*n != 10 + round * 7, "the items panic"));
            let result = catch_unwind(AssertUnwindSafe(|| pool.map(double, items)));
            assert!(result.is_err());
            let report = |done, _| assert!(done < 20, "the report panics");
            let batch = pool.batch().progress(report);
            let result = catch_unwind(AssertUnwindSafe(|| batch.map(double, 0..3000)));
            assert!(result.is_err());
        }
        for _ in 0..40 {
            let items = [0, 0, OUT.0].map(|how| Fragile(how, 5));
            let _ = catch_unwind(AssertUnwindSafe(|| pool.map_each(accept, items)));
        }
        let results = pool.map(double, 0..5000).expect("all succeed");
        assert_eq!(results[4999], 9998);
    });
}

#[test]
fn what_tasks_print_comes_once() {
    fn say(n: u64) {
        println!("<{n}>");
        print!("({n})");
    }
    /// Prints to a file, as do its workers; in a process of its own, because the workers of a
    /// forkserver print to where it did when it was started.
    fn print(method: String) -> String {
        let path = std::env::temp_dir().join(format!("bunshin-said-{}", std::process::id()));
        let said = std::fs::File::create(&path).expect("a temporary file");
        // SAFETY: both descriptors are open, and nobody owns the second.
        unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&said), 1) };
        print!("<before>");
        let pool = pool(method.parse().expect("it is one"), 2);
        pool.map(say, 0..100).expect("all succeed");
        pool.close();
        pool.join().expect("it is closed");
        let text = std::fs::read_to_string(&path).expect("it is there");
        std::fs::remove_file(&path).expect("it is there");
        text
    }
    support::each_method(|method| {
        let child = Process::builder().start_method(StartMethod::Spawn);
        let child = child.start(print, (method.to_string(),)).expect("a child");
        let text = child.result().expect("no panic");
        for word in (0..100).flat_map(|n| [format!("<{n}>"), format!("({n})")]) {
            assert_eq!(text.matches(&word).count(), 1, "{word} in {text}");
        }
        assert_eq!(text.matches("<before>").count(), 1, "{text}");
    });
}

// -- threads, pools in pools

#[test]
fn threads_share_a_pool() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        works(&pool);
        thread::scope(|scope| {
            for thread in 0..6u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for n in 0..6000 {
                        assert_eq!(pool.map(double, [n]).expect("all succeed"), [n * 2]);
                    }
                    for _ in 0..3 {
                        let items = thread..thread + 3000;
                        let results = pool.map(double, items.clone()).expect("all succeed");
                        assert!(results.into_iter().eq(items.map(|n| n * 2)));
                    }
                });
            }
        });
    });
}

/// With all slots in other hands, a map waits; it does not burn a processor.
#[test]
fn a_map_that_waits_for_room_sleeps() {
    /// Both workers are busy for a while, and all slots are full.
    fn long_at_first(n: u64) {
        if n < 2 {
            thread::sleep(Duration::from_millis(700));
        }
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        works(&pool);
        let cpu = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
        };
        thread::scope(|scope| {
            let first = scope.spawn(|| pool.map(long_at_first, 0..2000));
            thread::sleep(Duration::from_millis(100));
            let (start, before) = (Instant::now(), cpu());
            assert_eq!(pool.map(double, [4]).expect("it succeeds"), [8]);
            let (wall, used) = (start.elapsed(), cpu() - before);
            assert!(
                used < Duration::from_millis(50) + wall / 2,
                "{used:?} of {wall:?}"
            );
            assert!(
                first
                    .join()
                    .expect("no panic")
                    .is_ok_and(|all| all.len() == 2000)
            );
        });
    });
}

#[test]
fn a_pool_may_be_made_moved_and_used_by_threads_that_end() {
    support::each_method(|method| {
        let pool = if method == StartMethod::Fork {
            pool(method, 2)
        } else {
            thread::spawn(move || pool(method, 2))
                .join()
                .expect("no panic")
        };
        thread::sleep(Duration::from_millis(50));
        works(&pool);
        let before = pool.worker_pids();
        for _ in 0..3 {
            thread::scope(|scope| scope.spawn(|| works(&pool)).join().expect("no panic"));
        }
        let pool = thread::spawn(move || {
            works(&pool);
            pool
        });
        let pool = pool.join().expect("no panic");
        works(&pool);
        assert_eq!(
            pool.worker_pids(),
            before,
            "the workers are not the threads' to take along"
        );
    });
}

#[test]
fn tasks_may_have_pools() {
    fn outer(method: String) -> Vec<u64> {
        let pool = pool(method.parse().expect("it is one"), 2);
        pool.map(double, 0..50).expect("all succeed")
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        for inner in StartMethod::ALL {
            let results = pool
                .map(outer, vec![inner.to_string(); 3])
                .expect("all succeed");
            assert!(
                results
                    .iter()
                    .flatten()
                    .copied()
                    .eq((0..150).map(|n| n % 50 * 2)),
                "{inner}"
            );
        }
    });
}

// -- refusals

#[test]
fn impossible_pools_are_refused() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    for workers in [0, 4097, usize::MAX] {
        let error = Pool::new(workers).expect_err("no such pool");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let error = Pool::builder()
        .workers(2)
        .start_method(StartMethod::Fork)
        .build();
    assert_eq!(
        error.expect_err("it has threads").kind(),
        ErrorKind::Threads
    );
    let pool = pool(StartMethod::Spawn, 1);
    assert_ne!(
        pool.map(own_pid, [0]).expect("it works"),
        [std::process::id()]
    );
}

//! The pool's surface over threads.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bunshin::{ErrorKind, TaskError, ThreadPool};

fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(threads).expect("threads")
}

#[test]
fn closures_capture_and_results_are_in_order() {
    let _guard = support::guard(60);
    let pool = pool(3);
    let words: Arc<[String]> = (0..100).map(|n| format!("word {n}")).collect();
    let found = Arc::clone(&words);
    let lengths = pool
        .map(move |n: usize| found[n].len(), 0..100)
        .expect("no panic");
    assert!(lengths.into_iter().eq(words.iter().map(String::len)));
    assert_eq!(
        pool.starmap(|(a, b)| a * b, [(2, 3), (4, 5)])
            .expect("no panic"),
        [6, 20]
    );
    assert_eq!(pool.apply(|| "x").expect("no panic"), "x");
    let later: Vec<_> = (0..1000).map(|n| pool.apply_async(move || n * 2)).collect();
    assert!(
        (0..)
            .zip(later)
            .all(|(n, handle)| handle.get().expect("no panic") == n * 2)
    );
    let all: Result<Vec<_>, _> = pool.imap(|n: u64| n + 1, 0..1000).collect();
    assert!(all.expect("no panic").into_iter().eq(1..=1000));
    let mut all: Vec<_> = pool
        .imap_unordered(|n: u64| n + 1, 0..1000)
        .map(|r| r.expect("no panic"))
        .collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=1000));
    assert_eq!(
        pool.starmap_async(|(a, b)| a - b, [(5, 3)])
            .get()
            .expect("no panic"),
        [2]
    );
    assert_eq!(
        ThreadPool::new(0).expect_err("no threads").kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn panics_are_the_tasks_own() {
    let _guard = support::guard(60);
    let pool = pool(2);
    let results = pool.map_each(|n: u64| assert!(n != 3, "no threes"), 0..6);
    assert!(matches!(&results[3], Err(TaskError::Panicked(p)) if p.message() == "no threes"));
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 5);
    let handle = pool.apply_async(|| -> u64 { panic!("alone") });
    handle.wait().expect("it can be waited for");
    assert_eq!(handle.is_successful(), Some(false));
    assert!(handle.get().is_err_and(|e| e.is_panic()));
}

#[test]
fn cancelling_and_waiting_for_so_long() {
    let _guard = support::guard(60);
    let pool = pool(1);
    let (go, gate) = mpsc::channel::<()>();
    let first = pool.apply_async(move || gate.recv().is_ok());
    let second = pool.apply_async(|| 2);
    let many = pool.map_async(|n: u64| n, 0..100);
    let first = first
        .get_timeout(Duration::from_millis(10))
        .expect_err("it waits");
    assert!(!first.is_ready() && first.try_get().is_err());
    assert!(second.cancel());
    assert_eq!(many.cancel(), 100);
    assert!(second.get().is_err_and(|e| e.is_cancelled()));
    assert!(many.get().is_err_and(|e| e.is_cancelled()));
    go.send(()).expect("it listens");
    assert!(pool.apply(|| true).expect("it goes on"));
}

#[test]
fn callbacks_and_tasks_that_wait_for_tasks() {
    let _guard = support::guard(60);
    let pool = Arc::new(pool(1));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (good, bad) = (Arc::clone(&seen), Arc::clone(&seen));
    let first = pool
        .apply_async(|| 5)
        .callback(move |n| good.lock().expect("unpoisoned").push(*n));
    let second = pool.apply_async(|| -> i32 { panic!("no") });
    let second = second.error_callback(move |e| {
        bad.lock()
            .expect("unpoisoned")
            .push(-i32::from(e.is_panic()))
    });
    assert_eq!(first.get().expect("no panic"), 5);
    assert!(second.get().is_err());
    assert_eq!(*seen.lock().expect("unpoisoned"), [5, -1]);
    // With one thread, which is at the outer task.
    let again = Arc::clone(&pool);
    let sum = pool.apply(move || {
        let lazily: u64 = again
            .imap(|n: u64| n, 0..10)
            .map(|n| n.expect("no panic"))
            .sum();
        again
            .map(|n: u64| n, 0..10)
            .expect("no panic")
            .into_iter()
            .sum::<u64>()
            + lazily
    });
    assert_eq!(sum.expect("no panic"), 90);
}

#[test]
fn endless_items_and_ends() {
    let _guard = support::guard(60);
    let pool = pool(2);
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let mut results = pool.imap(
        |n: u64| n,
        (0..).inspect(move |_| drop(count.fetch_add(1, SeqCst).to_string())),
    );
    for n in 0..1000u64 {
        assert_eq!(results.next().expect("endless").expect("no panic"), n);
        assert!(taken.load(SeqCst) <= n as usize + 513);
    }
    drop(results);
    let mut slow = pool.imap_unordered(|ms: u64| thread::sleep(Duration::from_millis(ms)), [200]);
    assert!(slow.try_next().expect_err("it sleeps").is_timeout());
    assert!(
        slow.next_timeout(Duration::from_secs(20))
            .expect("in time")
            .is_some()
    );
    assert!(slow.next().is_none());
    assert_eq!(
        pool.join().expect_err("open").kind(),
        ErrorKind::InvalidInput
    );
    let last = pool.map_async(|n: u64| n, 0..100);
    pool.close();
    pool.join().expect("closed");
    assert_eq!(last.get().expect("no panic").len(), 100);
    assert!(matches!(pool.apply(|| 1), Err(TaskError::Pool(e)) if e.kind() == ErrorKind::Closed));
    let left = {
        let other = ThreadPool::new(1).expect("a thread");
        let (begun, has_begun) = mpsc::channel();
        let first = other.apply_async(move || begun.send(()).is_ok());
        has_begun.recv().expect("it begins");
        let _slow = other.apply_async(|| thread::sleep(Duration::from_millis(50)));
        (first, other.apply_async(|| 2))
    };
    assert!(left.0.get().expect("it had begun"));
    assert!(left.1.get().is_err_and(|e| e.is_cancelled()));
}

#[test]
fn each_thread_runs_what_it_is_to_run_first_and_last() {
    thread_local! {
        static READY: AtomicUsize = const { AtomicUsize::new(0) };
    }
    let _guard = support::guard(60);
    let counts = Arc::new([(); 2].map(|()| AtomicUsize::new(0)));
    let (begun, ended) = (Arc::clone(&counts), Arc::clone(&counts));
    let pool = ThreadPool::builder()
        .threads(3)
        .name("worker")
        .initializer(move || {
            begun[0].fetch_add(1, SeqCst);
            READY.with(|ready| ready.store(7, SeqCst));
        })
        .on_exit(move || {
            ended[1].fetch_add(1, SeqCst);
            panic!("nobody's");
        })
        .build()
        .expect("threads");
    let look = |_: u32| {
        let name = thread::current().name().map(str::to_owned);
        (READY.with(|ready| ready.load(SeqCst)), name)
    };
    for (ready, name) in pool.map(look, 0..100).expect("no panic") {
        assert_eq!(ready, 7);
        assert!(name.is_some_and(|name| name.starts_with("worker-")));
    }
    pool.close();
    pool.join().expect("it is closed");
    assert_eq!(counts.each_ref().map(|count| count.load(SeqCst)), [3, 3]);
    let nul = ThreadPool::builder().name("a\0b").build();
    assert_eq!(nul.expect_err("no name").kind(), ErrorKind::InvalidInput);
}

#[test]
fn an_initializer_that_panics_breaks_the_pool_and_hangs_nobody() {
    let _guard = support::guard(60);
    for round in 0..50 {
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let pool = ThreadPool::builder().threads(2).initializer(move || {
            if round % 2 == 0 {
                // When tasks are there already.
                let _ = wait.lock().map(|wait| wait.recv());
            }
            panic!("not today");
        });
        let pool = pool.build().expect("threads");
        let early = pool.apply_async(|| 1);
        let many = pool.map_async(|n: u32| n, 0..10);
        drop(go);
        let why = |error: TaskError| match error {
            TaskError::Pool(error) => {
                assert_eq!(error.kind(), ErrorKind::Initializer);
                assert!(error.to_string().contains("not today"), "{error}");
            }
            other => panic!("{other}"),
        };
        why(early.get().expect_err("it was not run"));
        why(many.get().expect_err("they were not run"));
        why(pool.apply(|| 2).expect_err("it is broken"));
        let mut lazy = pool.imap(|n: u64| n, 0..);
        why(lazy.next().expect("a result").expect_err("it is broken"));
        pool.join().expect("it takes no more tasks");
    }
}

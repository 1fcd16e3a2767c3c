//! What workers make first, keep, and do last.

mod support;

use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bunshin::{ErrorKind, Pool, PoolBuilder, RawValue, StartMethod, StatefulPool, TaskError};
use rustix::process::Signal;

fn builder(method: StartMethod, workers: usize) -> PoolBuilder {
    Pool::builder().workers(workers).start_method(method)
}

/// Counts tasks, and tells when it is dropped.
struct Counter {
    tasks: u64,
    dropped: RawValue<u64>,
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, SeqCst);
    }
}

fn counter(dropped: RawValue<u64>) -> Counter {
    Counter { tasks: 0, dropped }
}

fn count(counter: &mut Counter, n: u64) -> (u32, u64, u64) {
    counter.tasks += 1;
    (std::process::id(), counter.tasks, n)
}

fn counting(builder: PoolBuilder) -> (StatefulPool<Counter>, RawValue<u64>) {
    let dropped = RawValue::new(0u64).expect("a value");
    let pool = builder.state(counter, (dropped.clone(),)).build();
    (pool.expect("a pool can be made"), dropped)
}

#[test]
fn each_worker_has_its_own_state() {
    support::each_method(|method| {
        let (pool, dropped) = counting(builder(method, 2));
        let mut results = pool.map(count, 0..200).expect("it works");
        assert!(results.iter().map(|r| r.2).eq(0..200));
        results.sort_unstable();
        for pair in results.windows(2) {
            let expected = if pair[0].0 == pair[1].0 {
                pair[0].1 + 1
            } else {
                1
            };
            assert_eq!(
                pair[1].1, expected,
                "a worker counts its own tasks, one by one"
            );
        }
        assert_eq!(pool.apply(count, 7).expect("it works").2, 7);
        assert_eq!(pool.apply_async(count, 8).get().expect("it works").2, 8);
        assert_eq!(
            pool.map_async(count, 0..9).get().expect("it works").len(),
            9
        );
        assert_eq!(
            pool.imap(count, 0..).take(5).filter(Result::is_ok).count(),
            5
        );
        assert!(
            pool.apply(|_: &mut Counter, n: u64| assert_eq!(n, 0), 1)
                .is_err_and(|e| e.is_panic())
        );
        assert_eq!(
            pool.pool()
                .apply(|n: u64| n + 1, (1,))
                .expect("it needs no state"),
            2
        );
        assert_eq!(dropped.get(), 0);
        pool.pool().close();
        pool.pool().join().expect("it is closed");
        assert_eq!(dropped.get(), 2);
    });
}

#[test]
fn states_end_with_their_workers() {
    support::each_method(|method| {
        let (pool, dropped) = counting(builder(method, 1).max_tasks_per_child(5));
        let tasks: Vec<u64> = pool
            .map(count, 0..20)
            .expect("it works")
            .iter()
            .map(|r| r.1)
            .collect();
        assert!(tasks.into_iter().eq((0..20).map(|n| n % 5 + 1)));
        assert!(support::wait_until(Duration::from_secs(10), || dropped
            .get()
            == 4));
        drop(pool);
        // Terminated while it is idle, and perhaps not even ready.
        let (pool, dropped) = counting(builder(method, 2));
        assert_eq!(pool.map(count, 0..100).expect("it works").len(), 100);
        pool.pool().terminate();
        assert!((1..=2).contains(&dropped.get()));
        // One that is killed drops nothing, and the next begins anew.
        let (pool, dropped) = counting(builder(method, 1));
        let (pid, tasks, _) = pool.apply(count, 1).expect("it works");
        assert_eq!(tasks, 1);
        support::kill(pid, Signal::KILL);
        assert!(support::wait_until(Duration::from_secs(10), || {
            !support::is_running(pid)
        }));
        assert_eq!(pool.apply(count, 1).expect("another worker").1, 1);
        assert_eq!(dropped.get(), 0);
    });
}

#[test]
fn a_state_that_cannot_be_made_breaks_the_pool() {
    support::each_method(|method| {
        let pool = builder(method, 2).state(|n: u64| -> u64 { panic!("no {n}") }, (3,));
        let pool = pool.build().expect("it is made later");
        match pool.apply(|state: &mut u64, n: u64| *state + n, 1) {
            Err(TaskError::Pool(error)) => {
                assert_eq!(error.kind(), ErrorKind::Initializer);
                assert!(error.to_string().contains("no 3"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn workers_run_their_last_function() {
    static LEFT: OnceLock<RawValue<u64>> = OnceLock::new();
    fn prepare(left: RawValue<u64>) {
        LEFT.set(left).expect("each worker prepares once");
    }
    fn leave() {
        LEFT.get().expect("prepared").fetch_add(1, SeqCst);
    }
    support::each_method(|method| {
        let left = RawValue::new(0u64).expect("a value");
        let prepared = || {
            builder(method, 2)
                .initializer(prepare, (left.clone(),))
                .on_exit(leave)
        };
        let pool = prepared().build().expect("a pool can be made");
        assert_eq!(pool.map(|n: u64| n, 0..10).expect("it works").len(), 10);
        pool.close();
        pool.join().expect("it is closed");
        assert_eq!(left.get(), 2);
        let pool = prepared()
            .max_tasks_per_child(1)
            .build()
            .expect("a pool can be made");
        assert_eq!(pool.map(|n: u64| n, 0..4).expect("it works").len(), 4);
        pool.close();
        pool.join().expect("it is closed");
        assert!(left.get() >= 6);
        // A stuck worker holds nobody up.
        let pool = prepared().build().expect("a pool can be made");
        let _stuck = pool.apply_async(|| std::thread::sleep(Duration::from_secs(60)), ());
        drop(pool);
    });
}

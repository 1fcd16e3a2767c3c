//! Results one by one, lazily: endless items, windows, dropped iterators, killed workers.

mod support;

use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{Buffer, ErrorKind, Pool, RawValue, StartMethod, TaskError};
use rustix::process::Signal;

fn pool(method: StartMethod, workers: usize) -> Pool {
    let builder = Pool::builder().workers(workers).start_method(method);
    builder.build().expect("a pool can be made")
}

fn double(number: u64) -> u64 {
    number * 2
}

fn die_at_tens(number: u64) -> u64 {
    if number % 10 == 7 {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, Signal::KILL).expect("it may");
    }
    number * 2
}

#[test]
fn results_come_in_order_or_as_they_come() {
    support::each_method(|method| {
        let pool = pool(method, 3);
        let all: Result<Vec<u64>, TaskError> = pool.imap(double, 0..5000).collect();
        assert!(
            all.expect("it works")
                .into_iter()
                .eq((0..5000).map(|n| n * 2))
        );
        let unordered = pool.imap_unordered(double, 0..5000);
        let mut all = unordered.collect::<Result<Vec<_>, _>>().expect("it works");
        all.sort_unstable();
        assert!(all.into_iter().eq((0..5000).map(|n| n * 2)));
        let chunks: Result<Vec<u64>, _> =
            pool.batch().chunk_size(16).imap(double, 0..999).collect();
        assert_eq!(chunks.expect("it works").len(), 999);
        assert_eq!(pool.imap(double, []).count(), 0);
        // The slow one holds nobody up if the order does not matter.
        fn slow_first(n: u64) -> u64 {
            thread::sleep(Duration::from_millis(if n == 0 { 300 } else { 0 }));
            n
        }
        let last = pool.imap_unordered(slow_first, 0..200).last();
        assert_eq!(last.expect("there are some").expect("it works"), 0);
        let sums = pool.imap(
            |b: Buffer<u64>| b.iter().sum::<u64>(),
            (0..300).map(|n| Buffer::from(vec![n; 9000])),
        );
        assert!(
            sums.map(|s| s.expect("it works"))
                .eq((0..300).map(|n| n * 9000))
        );
    });
}

#[test]
fn an_endless_iterator_is_taken_as_it_is_wanted() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let taken = Cell::new(0u64);
        let items = std::iter::from_fn(|| {
            taken.set(taken.get() + 1);
            Some(taken.get())
        });
        let mut results = pool.batch().window(20).imap(double, items);
        for n in 1..=10_000 {
            assert_eq!(results.next().expect("endless").expect("it works"), n * 2);
            assert!(taken.get() <= n + 20, "{} taken for {n}", taken.get());
        }
        // A consumer that pauses holds the items back.
        let before = taken.get();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(taken.get(), before);
        drop(results);
        // Without a choice there is a bound too.
        let taken = Cell::new(0u64);
        let items = std::iter::repeat_with(|| taken.set(taken.get() + 1));
        let mut results = pool.imap_unordered(|()| (), items);
        for n in 1..=20_000 {
            results.next().expect("endless").expect("it works");
            assert!(taken.get() <= n + 513, "{} taken for {n}", taken.get());
        }
    });
}

#[test]
fn memory_stays_as_it_is() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let own = std::process::id();
        let mut results = pool.imap(
            |text: String| text + "!",
            std::iter::repeat("x".repeat(2000)),
        );
        let mut run = |count: usize| {
            for result in results.by_ref().take(count) {
                assert_eq!(result.expect("it works").len(), 2001);
            }
            support::resident_bytes(own).expect("it runs")
        };
        let before = run(10_000);
        let after = run(40_000);
        // The pool's memory comes to be used as more is on its way at once; all that was sent is 80 MB.
        assert!(after < before + (48 << 20), "{before} bytes, then {after}");
    });
}

#[test]
fn a_worker_that_dies_makes_one_result_an_error() {
    support::each_method(|method| {
        let pool = pool(method, 3);
        for (n, result) in (0..).zip(pool.imap(die_at_tens, 0..60)) {
            match result {
                Ok(result) => assert_eq!(result, n * 2),
                Err(TaskError::Lost(lost)) => {
                    assert_eq!((n % 10, lost.task()), (7, Some(n as usize)))
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        let (good, bad): (Vec<_>, Vec<_>) = pool
            .imap_unordered(die_at_tens, 0..60)
            .partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (54, 6));
        let (mut good, mut late) = (0, 0);
        let limited = pool.batch().timeout(Duration::from_millis(100));
        let stuck_at_five = |n: u64| {
            if n == 5 {
                thread::sleep(Duration::from_secs(60));
            }
        };
        for result in limited.imap(stuck_at_five, 0..10) {
            match result {
                Ok(()) => good += 1,
                Err(error) => late += usize::from(error.is_timeout()),
            }
        }
        assert_eq!((good, late), (9, 1));
    });
}

#[test]
fn dropping_the_iterator_cancels_the_rest() {
    fn count((n, begun): (u64, RawValue<u64>)) -> u64 {
        begun.fetch_add(1, SeqCst);
        thread::sleep(Duration::from_millis(20));
        n
    }
    support::each_method(|method| {
        let pool = pool(method, 1);
        let begun = RawValue::new(0u64).expect("a value");
        let mut results = pool
            .batch()
            .window(4)
            .imap(count, (0..).map(|n| (n, begun.clone())));
        assert_eq!(results.next().expect("endless").expect("it works"), 0);
        drop(results);
        let at_drop = begun.get();
        assert_eq!(pool.apply(double, (1,)).expect("it works"), 2);
        // At most the one that the worker had by then.
        assert!(
            begun.get() <= at_drop + 1,
            "{} begun, {at_drop} at the drop",
            begun.get()
        );
    });
}

#[test]
fn waiting_for_a_result_can_end_before_it_comes() {
    support::each_method(|method| {
        let pool = pool(method, 1);
        let items = [300, 0];
        let mut results = pool.imap(|ms: u64| thread::sleep(Duration::from_millis(ms)), items);
        assert_eq!(
            results.try_next().expect_err("it sleeps").kind(),
            ErrorKind::TimedOut
        );
        let early = results.next_timeout(Duration::from_millis(10));
        assert!(early.expect_err("it sleeps").is_timeout());
        assert!(
            results
                .next_timeout(Duration::from_secs(30))
                .expect("in time")
                .is_some()
        );
        assert!(results.next().expect("another").is_ok());
        assert!(results.try_next().expect("no wait for nothing").is_none());
    });
}

/// Results are given while a slow iterator has not come up with the next items.
#[test]
fn items_that_come_slowly_hold_no_result_back() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let items = (0..6).inspect(|_| thread::sleep(Duration::from_millis(100)));
        let since = Instant::now();
        let mut results = pool.imap(double, items);
        assert_eq!(results.next().expect("six").expect("it works"), 0);
        assert!(
            since.elapsed() < Duration::from_millis(450),
            "{:?}",
            since.elapsed()
        );
        assert_eq!(results.count(), 5);
    });
}

#[test]
fn a_pool_that_ends_ends_its_iterators() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let mut results = pool.imap(double, 0..);
        assert!(results.next().expect("endless").is_ok());
        pool.terminate();
        let rest: Vec<_> = results.collect();
        assert!(
            rest.len() < 1100,
            "{} results of a terminated pool",
            rest.len()
        );
        assert!(matches!(
            rest.last(),
            None | Some(Err(TaskError::Cancelled) | Ok(_))
        ));
        let refused: Vec<_> = pool.imap(double, 0..).collect();
        assert!(matches!(refused[..], [Err(TaskError::Pool(_))]));
    });
}

#[test]
fn several_at_once_and_panics_of_the_caller() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let many: Vec<_> = (0..6).map(|_| pool.imap(double, 0..3000)).collect();
        let mut many: Vec<_> = many.into_iter().map(|it| (0, it)).collect();
        for _ in 0..3000 {
            for (next, results) in &mut many {
                assert_eq!(results.next().expect("more").expect("it works"), *next * 2);
                *next += 1;
            }
        }
        assert!(many.iter_mut().all(|(_, results)| results.next().is_none()));
        drop(many);
        // Paused ones, whose results fill the table, keep nobody from it.
        let mut paused: Vec<_> = (0..4).map(|_| pool.imap(double, 0..)).collect();
        for results in &mut paused {
            assert!(results.by_ref().take(5000).all(|r| r.is_ok()));
        }
        assert_eq!(pool.apply_async(double, (4,)).get().expect("it works"), 8);
        assert_eq!(pool.map(double, 0..3000).expect("it works").len(), 3000);
        drop(paused);
        std::panic::set_hook(Box::new(|_| ()));
        let items = (0..100).inspect(|n| assert!(*n < 50, "no more"));
        let mut results = pool.imap(double, items);
        let panics =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| results.by_ref().count()));
        assert!(panics.is_err());
        drop(results);
        let _ = std::panic::take_hook();
        assert_eq!(pool.map(double, 0..2000).expect("it works").len(), 2000);
    });
}

#[test]
fn killed_and_stopped_workers_cost_their_own_items() {
    let _guard = support::guard_after(240, support::start_each_way_once);
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let pool = pool(method, 3);
        let (quit, until) = mpsc::channel::<()>();
        let (lost, killed) = thread::scope(|scope| {
            let disturber = scope.spawn(|| {
                let until = until;
                let mut killed = 0;
                for round in 0u64.. {
                    if until
                        .recv_timeout(Duration::from_micros(round * 997 % 5000))
                        .is_ok()
                    {
                        break;
                    }
                    let pids = pool.worker_pids();
                    let Some(pid) = pids.get(round as usize % 3).copied() else {
                        continue;
                    };
                    if round % 4 == 0 {
                        support::kill(pid, Signal::STOP);
                        thread::sleep(Duration::from_micros(round * 331 % 3000));
                        support::kill(pid, Signal::CONT);
                    } else {
                        killed += usize::from(support::kill(pid, Signal::KILL));
                    }
                }
                killed
            });
            let mut lost = 0;
            for round in 0..40 {
                let batch = || pool.batch().chunk_size([1, 8][round % 2]);
                for (n, result) in (0..).zip(batch().imap(double, 0..2000)) {
                    match result {
                        Ok(result) => assert_eq!(result, n * 2),
                        Err(TaskError::Lost(_)) => lost += 1,
                        Err(other) => panic!("{other:?}"),
                    }
                }
                let count = batch().imap_unordered(double, 0..2000).inspect(|result| {
                    lost += usize::from(result.is_err());
                });
                assert_eq!(count.count(), 2000);
                // Dropped half-way.
                assert_eq!(pool.imap(double, 0..).take(300).count(), 300);
            }
            quit.send(()).expect("it listens");
            (lost, disturber.join().expect("no panic"))
        });
        assert!(killed > 10, "{killed} kills are too few to say anything");
        assert!(lost <= killed, "{lost} items lost by {killed} kills");
    }
}

#[test]
fn a_pool_that_is_broken_says_so_to_those_who_map_lazily() {
    support::each_method(|method| {
        let pool = Pool::builder()
            .workers(2)
            .start_method(method)
            .initializer(cannot_begin, ())
            .build()
            .expect("a pool");
        let broken = |error: &TaskError| matches!(error, TaskError::Pool(error) if error.kind() == ErrorKind::Initializer);
        let is_broken = || matches!(pool.apply(|| (), ()), Err(error) if broken(&error));
        assert!(support::wait_until(Duration::from_secs(10), is_broken));
        let results: Vec<_> = pool.imap(|n: u64| n, 0..5).collect();
        assert!(
            results.iter().any(|r| r.as_ref().is_err_and(broken)),
            "{results:?}"
        );
        let results: Vec<_> = pool.imap_unordered(|n: u64| n, 0..5).collect();
        assert!(
            results.iter().any(|r| r.as_ref().is_err_and(broken)),
            "{results:?}"
        );
    });
}

fn cannot_begin() {
    panic!("it cannot begin");
}

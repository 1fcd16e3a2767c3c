//! Awaiting the tasks of pools, and streams of their results.
#![cfg(feature = "tokio")]

mod support;

use std::cell::Cell;
use std::future::{Future, IntoFuture};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use bunshin::tokio::{Connection, Queue};
use bunshin::{Buffer, ErrorKind, Pool, StartMethod, TaskError, ThreadPool};
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(30);

/// A runtime of this thread alone: under it, `fork` works as well.
fn here<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(work)
}

fn many() -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build();
    runtime.expect("a runtime can be made")
}

/// Whether this future is not done now.
async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    timeout(Duration::from_millis(30), future).await.is_err()
}

/// Methods under which a pool can be awaited: one of forked workers has no thread to look
/// after it.
fn spawning() -> [StartMethod; 2] {
    [StartMethod::Spawn, StartMethod::Forkserver]
}

fn pool(method: StartMethod, workers: usize) -> Pool {
    let builder = Pool::builder().workers(workers).start_method(method);
    builder.build().expect("a pool can be made")
}

fn double(number: u64) -> u64 {
    number * 2
}

fn nap(millis: u64) -> u64 {
    thread::sleep(Duration::from_millis(millis));
    millis
}

fn die(number: u64) -> u64 {
    if number == 3 {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, Signal::KILL).expect("it may");
    }
    number
}

#[test]
fn tasks_and_maps_are_awaited() {
    for method in spawning() {
        let _guard = support::guard_after(90, support::start_each_way_once);
        for runtime in [
            many(),
            Builder::new_current_thread().enable_all().build().unwrap(),
        ] {
            let pool = pool(method, 3);
            runtime.block_on(async {
                assert_eq!(pool.apply_async(double, (21,)).await.expect("it works"), 42);
                let all = pool.map_async(double, 0..5000).await.expect("it works");
                assert!(all.into_iter().eq((0..5000).map(|n| n * 2)));
                // Many at a time, and in no order.
                let tasks: Vec<_> = (0..3000).map(|n| pool.apply_async(double, (n,))).collect();
                for (n, task) in tasks.into_iter().enumerate().rev() {
                    let doubled = timeout(LONG, task).await.expect("in time");
                    assert_eq!(doubled.expect("it works"), 2 * n as u64);
                }
                let error = pool.apply_async(|| -> u8 { panic!("no") }, ()).await;
                assert!(matches!(error, Err(TaskError::Panicked(_))));
                // Callbacks come first.
                let seen = Arc::new(AtomicU64::new(0));
                let there = Arc::clone(&seen);
                let task = pool.apply_async(double, (4,));
                let task = task.callback(move |n| there.store(*n, SeqCst));
                assert_eq!(
                    timeout(LONG, task)
                        .await
                        .expect("in time")
                        .expect("it works"),
                    8
                );
                assert_eq!(seen.load(SeqCst), 8);
            });
        }
    }
}

#[test]
fn a_killed_worker_is_told_to_who_awaits_its_task() {
    for method in spawning() {
        let _guard = support::guard_after(90, support::start_each_way_once);
        let pool = pool(method, 2);
        many().block_on(async {
            for _ in 0..10 {
                let tasks: Vec<_> = (0..8).map(|n| pool.apply_async(die, (n,))).collect();
                for (n, task) in tasks.into_iter().enumerate() {
                    match timeout(LONG, task).await.expect("in time") {
                        Ok(number) => assert_eq!(number, n as u64),
                        Err(error) => assert!(n == 3 && error.is_lost(), "{n}: {error}"),
                    }
                }
            }
            // One that is asleep in a task, killed while nothing else goes on.
            let task = pool.apply_async(nap, (60_000,));
            let mut task = Box::pin(task.into_future());
            assert!(is_pending(&mut task).await);
            for pid in pool.worker_pids() {
                support::kill(pid, Signal::KILL);
            }
            let error = timeout(LONG, task)
                .await
                .expect("in time")
                .expect_err("it is lost");
            assert!(error.is_lost(), "{error}");
        });
    }
}

#[test]
fn what_is_awaited_ends_with_its_pool() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let pool = pool(StartMethod::Spawn, 1);
    here(async {
        let slow = pool.apply_async(nap, (60_000,));
        let never = pool.apply_async(double, (1,));
        let late = async {
            sleep(Duration::from_millis(30)).await;
            pool.terminate();
        };
        let both = async { tokio::join!(async { slow.await }, async { never.await }, late) };
        let (slow, never, ()) = timeout(LONG, both).await.expect("in time");
        assert!(slow.is_err());
        assert!(matches!(never, Err(TaskError::Cancelled)));
        let refused = pool.apply_async(double, (1,)).await;
        assert!(matches!(refused, Err(TaskError::Pool(_))));
    });
}

#[test]
fn a_dropped_future_leaves_its_task_alone() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let pool = pool(StartMethod::Spawn, 1);
    let marks = bunshin::RawArray::<u32>::new(1);
    let marks = Arc::new(marks.expect("an array"));
    here(async {
        fn mark(marks: bunshin::RawArray<u32>) {
            thread::sleep(Duration::from_millis(30));
            marks.set(0, marks.get(0) + 1);
        }
        for _ in 0..5 {
            let task = pool.apply_async(mark, (marks.as_ref().clone(),));
            let soon = Duration::from_millis(1);
            assert!(timeout(soon, async { task.await }).await.is_err());
        }
        // The last one waits for all before it.
        assert_eq!(pool.apply_async(double, (1,)).await.expect("it works"), 2);
        assert_eq!(marks.get(0), 5);
    });
}

#[test]
fn a_pool_of_forked_workers_says_that_it_cannot_be_awaited() {
    let _guard = support::guard(60);
    support::in_single_thread(|| {
        let pool = pool(StartMethod::Fork, 1);
        here(async {
            let error = pool
                .apply_async(nap, (200,))
                .await
                .expect_err("there is no thread");
            assert!(
                matches!(&error, TaskError::Pool(e) if e.kind() == ErrorKind::Unsupported),
                "{error}"
            );
            let mut results = pool.imap(nap, [200u64]).into_stream();
            let error = results
                .next()
                .await
                .expect("there is one")
                .expect_err("no thread");
            assert!(matches!(error, TaskError::Pool(_)), "{error}");
        });
    });
}

#[test]
fn threads_are_awaited() {
    let _guard = support::guard(60);
    let pool = ThreadPool::new(2).expect("a pool");
    many().block_on(async {
        for n in 0..500u64 {
            let task = timeout(LONG, async { pool.apply_async(move || n * 2).await });
            assert_eq!(task.await.expect("in time").expect("it works"), n * 2);
        }
        let all = pool.map_async(double, 0..500).await.expect("it works");
        assert_eq!(all.len(), 500);
        let (slow, quick) = (|| nap(50), || nap(0));
        let tasks = async {
            let (slow, quick) = (pool.apply_async(slow), pool.apply_async(quick));
            (slow.await, quick.await)
        };
        let (slow, quick) = timeout(LONG, tasks).await.expect("in time");
        assert_eq!((slow.expect("it works"), quick.expect("it works")), (50, 0));
        drop(pool);
    });
}

#[test]
fn an_endless_stream_holds_its_items_back() {
    for method in spawning() {
        let _guard = support::guard_after(120, support::start_each_way_once);
        let pool = pool(method, 2);
        here(async {
            let taken = Rc::new(Cell::new(0u64));
            let count = Rc::clone(&taken);
            let items = std::iter::from_fn(move || {
                count.set(count.get() + 1);
                Some(count.get())
            });
            let mut results = pool.batch().window(20).imap(double, items).into_stream();
            for n in 1..=10_000 {
                let next = timeout(LONG, results.next()).await.expect("in time");
                assert_eq!(next.expect("endless").expect("it works"), n * 2);
                assert!(taken.get() <= n + 20, "{} taken for {n}", taken.get());
            }
            let before = taken.get();
            sleep(Duration::from_millis(50)).await;
            assert_eq!(taken.get(), before);
            drop(results);
            sleep(Duration::from_millis(20)).await;
            assert_eq!(taken.get(), before);
            // In any order, with a worker that dies now and then.
            let mut results = pool
                .imap_unordered(die, (0..).map(|n: u64| n % 50))
                .into_stream();
            let mut lost = 0;
            for _ in 0..400 {
                let next = timeout(LONG, results.next()).await.expect("in time");
                lost += u32::from(next.expect("endless").is_err_and(|error| error.is_lost()));
            }
            assert!(lost >= 7, "{lost} lost");
            drop(results);
            assert_eq!(
                pool.imap(double, []).into_stream().next().await.map(drop),
                None
            );
            let all: Result<Vec<_>, _> = pool.imap(double, 0..3000).into_stream().collect().await;
            assert!(
                all.expect("it works")
                    .into_iter()
                    .eq((0..3000).map(|n| n * 2))
            );
        });
    }
}

#[test]
fn the_memory_of_a_stream_stays_as_it_is() {
    let _guard = support::guard_after(120, support::start_each_way_once);
    let pool = pool(StartMethod::Forkserver, 2);
    here(async {
        let own = std::process::id();
        let texts = std::iter::repeat("x".repeat(2000));
        let mut results = pool.imap(|text: String| text + "!", texts).into_stream();
        let mut sizes = Vec::new();
        for count in [10_000, 40_000] {
            for _ in 0..count {
                let text = results.next().await.expect("endless").expect("it works");
                assert_eq!(text.len(), 2001);
            }
            sizes.push(support::resident_bytes(own).expect("it runs"));
        }
        assert!(sizes[1] < sizes[0] + (24 << 20), "{sizes:?}");
    });
}

#[test]
fn streams_share_a_pool_with_everybody() {
    let _guard = support::guard_after(120, support::start_each_way_once);
    let pool = Arc::new(pool(StartMethod::Spawn, 3));
    many().block_on(async {
        let mut tasks = Vec::new();
        for number in 0..4u64 {
            let (pool, there) = (Arc::clone(&pool), Arc::clone(&pool));
            tasks.push(tokio::spawn(async move {
                let mut results = pool.imap(double, number..number + 4000).into_stream();
                let mut sum = 0;
                while let Some(result) = results.next().await {
                    sum += result.expect("it works");
                }
                (0..4000).map(|n| 2 * (n + number)).sum::<u64>() == sum
            }));
            let blocking = tokio::task::spawn_blocking(move || there.map(double, 0..4000));
            assert_eq!(
                blocking.await.expect("it ends").expect("it works").len(),
                4000
            );
        }
        // Large ones have a window of their own.
        let buffers = (0..300).map(|n| Buffer::from(vec![n; 9000]));
        let mut sums = pool
            .imap(|b: Buffer<u64>| b.iter().sum::<u64>(), buffers)
            .into_stream();
        for n in 0..300 {
            let sum = timeout(LONG, sums.next()).await.expect("in time");
            assert_eq!(sum.expect("it comes").expect("it works"), n * 9000);
        }
        for task in tasks {
            assert!(
                timeout(LONG, task)
                    .await
                    .expect("in time")
                    .expect("it ends")
            );
        }
    });
    drop(pool);
}

#[test]
fn who_waits_uses_no_processor() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let pool = pool(StartMethod::Spawn, 1);
    here(async {
        let queue = bunshin::Queue::<u64>::bounded(1).expect("a queue");
        queue.send(1).expect("there is room");
        let empty = Queue::new(bunshin::Queue::<u64>::new().expect("a queue")).expect("watched");
        let full = Queue::new(queue).expect("watched");
        let (near, _far) = bunshin::pipe::<u64>().expect("a pipe");
        let near = Connection::new(near).expect("watched");
        let slow = pool.apply_async(nap, (60_000,));
        let all =
            async { tokio::join!(empty.recv(), full.send(2), near.recv(), slow.into_future()) };
        let mut all = Box::pin(all);
        // Whatever it does at first.
        assert!(is_pending(&mut all).await);
        let before = cpu_time();
        assert!(timeout(Duration::from_secs(2), &mut all).await.is_err());
        let used = cpu_time() - before;
        assert!(used < Duration::from_millis(500), "{used:?} in two seconds");
    });
}

/// What all threads of this process have used so far.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

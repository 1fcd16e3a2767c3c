//! Tasks that nobody waits for at once: handles, callbacks, cancelling, time limits, and what
//! becomes of them when workers are killed.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{Buffer, ErrorKind, Pool, Process, RawValue, StartMethod, TaskError, TaskHandle};
use rustix::process::Signal;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

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

fn die(number: u64) -> u64 {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, Signal::KILL).expect("it may");
    number
}

#[test]
fn handles_give_results_in_any_order() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let first = pool.apply_async(nap, (1,));
        let second = pool.apply_async(double, (2,));
        assert_eq!(second.get().expect("it works"), 4);
        first.wait().expect("it can be waited for");
        assert!(first.is_ready());
        assert_eq!(first.is_successful(), Some(true));
        assert_eq!(first.try_get().expect("ready").expect("it works"), 2);
        let sums = pool.starmap_async(|a: u64, b: u64| a + b, [(1, 2), (3, 4)]);
        assert_eq!(sums.get().expect("it works"), [3, 7]);
        assert_eq!(
            pool.apply(|| "none".to_owned(), ()).expect("it works"),
            "none"
        );
        assert_eq!(
            pool.starmap(u64::max, [(1, 2), (4, 3)]).expect("it works"),
            [2, 4]
        );
        let empty = pool.map_async(double, []);
        assert!(empty.is_ready());
        assert!(empty.get().expect("nothing fails").is_empty());
    });
}

#[test]
fn failures_come_with_the_handle() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let panics = pool.apply_async(|n: u64| -> u64 { panic!("no {n}") }, (3,));
        let dies = pool.apply_async(die, (1,));
        let unencodable = pool.apply_async(|_: Unencodable| (), (Unencodable,));
        match panics.get() {
            Err(TaskError::Panicked(panic)) => assert_eq!(panic.message(), "no 3"),
            other => panic!("{other:?}"),
        }
        match dies.get() {
            Err(TaskError::Lost(lost)) => {
                assert_eq!(lost.status().and_then(|s| s.signal()), Some(9));
                assert_eq!(lost.task(), None);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(unencodable.is_successful(), Some(false));
        assert!(matches!(unencodable.get(), Err(TaskError::Arguments(_))));
        let mixed = pool.map_async(|n: u64| if n == 2 { die(n) } else { n }, 0..4);
        let results = mixed.get_each().expect("it can be waited for");
        assert!(matches!(&results[2], Err(TaskError::Lost(lost)) if lost.task() == Some(2)));
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 3);
        pool.close();
        let late = pool.apply_async(double, (1,));
        assert!(late.is_ready());
        assert!(matches!(late.get(), Err(TaskError::Pool(e)) if e.kind() == ErrorKind::Closed));
        pool.join().expect("it is closed");
    });
}

struct Unencodable;

impl serde::Serialize for Unencodable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
}

impl<'de> serde::Deserialize<'de> for Unencodable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("never"))
    }
}

#[test]
fn many_more_tasks_than_the_table_holds() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let handles: Vec<_> = (0..20_000)
            .map(|n| pool.apply_async(double, (n,)))
            .collect();
        let all = pool.map_async(double, 0..20_000);
        // A map beside them has its turn as well.
        let mapped = pool.map(double, 0..5000).expect("it works");
        assert!(mapped.into_iter().eq((0..5000).map(|n| n * 2)));
        for (n, handle) in (0..).zip(handles) {
            assert_eq!(handle.get().expect("it works"), n * 2);
        }
        assert!(
            all.get()
                .expect("it works")
                .into_iter()
                .eq((0..20_000).map(|n| n * 2))
        );
    });
}

/// What is begun is done though nobody waits: within the table without a thread of the
/// parent's, beyond it with one, but for `fork`.
#[test]
fn tasks_are_done_though_nobody_waits() {
    fn count(done: RawValue<u64>) {
        done.fetch_add(1, SeqCst);
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        let done = RawValue::new(0u64).expect("a value");
        // Handles of the system are sent with each of these, a few at a time.
        for _ in 0..4 {
            drop(pool.apply_async(count, (done.clone(),)));
        }
        if method == StartMethod::Fork {
            pool.close();
            pool.join().expect("it is closed");
        }
        assert!(support::wait_until(LONG, || done.get() == 4));
        if method == StartMethod::Fork {
            return;
        }
        static DONE: AtomicUsize = AtomicUsize::new(0);
        let before = support::open_descriptors(std::process::id());
        for n in 0..5000 {
            drop(pool.apply_async(double, (n,)).callback(|_| {
                DONE.fetch_add(1, SeqCst);
            }));
        }
        assert!(support::wait_until(LONG, || DONE.load(SeqCst) == 5000));
        // What the first four brought may still have been held before.
        assert!(support::open_descriptors(std::process::id()) <= before);
    });
}

#[test]
fn large_arguments_are_held_back() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let sums: Vec<_> = (0..400u64)
            .map(|n| {
                pool.apply_async(
                    |b: Buffer<u64>| b.iter().sum::<u64>(),
                    (Buffer::from(vec![n; 20_000]),),
                )
            })
            .collect();
        for (n, sum) in (0..).zip(sums) {
            assert_eq!(sum.get().expect("it works"), n * 20_000);
        }
        let value = RawValue::new(7u64).expect("a value");
        let reads: Vec<_> = (0..400)
            .map(|_| pool.apply_async(|v: RawValue<u64>| v.get(), (value.clone(),)))
            .collect();
        assert!(support::open_descriptors(std::process::id()) < 400);
        assert!(reads.into_iter().all(|r| r.get().expect("it works") == 7));
    });
}

#[test]
fn callbacks_are_called_once_and_before_the_handle_is_ready() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let (tell, told) = mpsc::channel();
        let errors = tell.clone();
        let good = pool
            .apply_async(double, (4,))
            .callback(move |n| tell.send(format!("good {n}")).expect("a listener"))
            .error_callback(|_| panic!("it is good"));
        let bad = pool
            .apply_async(|n: u64| -> u64 { panic!("no {n}") }, (1,))
            .callback(|_| panic!("it is bad"))
            .error_callback(move |e| {
                errors
                    .send(format!("bad {}", e.is_panic()))
                    .expect("a listener")
            });
        good.wait().expect("it can be waited for");
        bad.wait().expect("it can be waited for");
        let mut said: Vec<_> = told.try_iter().collect();
        said.sort();
        assert_eq!(said, ["bad true", "good 8"]);
        // One that is added late is called too.
        let late = Arc::new(Mutex::new(0));
        let seen = Arc::clone(&late);
        let good = good.callback(move |n| *seen.lock().expect("unpoisoned") = *n);
        assert_eq!(good.get().expect("it works"), 8);
        assert_eq!(*late.lock().expect("unpoisoned"), 8);
        assert!(bad.get().is_err_and(|e| e.is_panic()));
        let sum = Arc::new(Mutex::new(0));
        let seen = Arc::clone(&sum);
        let all = pool.map_async(double, 0..100).callback(move |all| {
            *seen.lock().expect("unpoisoned") = all.iter().sum::<u64>();
        });
        assert_eq!(all.get().expect("it works").len(), 100);
        assert_eq!(*sum.lock().expect("unpoisoned"), 9900);
    });
}

#[test]
fn callbacks_use_the_pool_and_may_panic() {
    support::each_method(|method| {
        let pool = Arc::new(pool(method, 2));
        let (tell, told) = mpsc::channel();
        let again = Arc::clone(&pool);
        let first = pool.apply_async(double, (1,)).callback(move |n| {
            let next = again.apply_async(double, (*n,)).get().expect("it works");
            let all = again.map(double, 0..next).expect("it works");
            tell.send((next, all.len())).expect("a listener");
        });
        assert_eq!(first.get().expect("it works"), 2);
        assert_eq!(told.try_recv().expect("it was called"), (4, 4));
        std::panic::set_hook(Box::new(|_| ()));
        let panics = pool
            .apply_async(double, (3,))
            .callback(|_| panic!("in a callback"));
        assert_eq!(panics.get().expect("it works"), 6);
        let _ = std::panic::take_hook();
        assert_eq!(pool.apply(double, (5,)).expect("it works"), 10);
    });
}

#[test]
fn what_has_not_begun_can_be_cancelled_and_never_runs() {
    fn mark((n, begun): (u64, RawValue<u64>)) -> u64 {
        begun.fetch_add(1, SeqCst);
        thread::sleep(Duration::from_millis(if n == 0 { 200 } else { 0 }));
        n
    }
    support::each_method(|method| {
        let pool = pool(method, 1);
        let begun = RawValue::new(0u64).expect("a value");
        let first = pool.apply_async(mark, ((0, begun.clone()),));
        // Under `fork` nobody else sends the value.
        let has_begun = || !first.is_ready() && begun.get() == 1;
        assert!(support::wait_until(LONG, has_begun));
        let second = pool.apply_async(mark, ((1, begun.clone()),));
        let many = pool.map_async(double, 0..3000);
        assert!(!first.cancel(), "it has begun");
        assert!(second.cancel());
        assert!(!second.cancel(), "once is enough");
        assert_eq!(many.cancel(), 3000);
        assert!(second.get().is_err_and(|e| e.is_cancelled()));
        assert!(many.get_each().expect("ready").iter().all(|r| r.is_err()));
        assert_eq!(first.get().expect("it has begun"), 0);
        // Cancelled entries take no room for long.
        for _ in 0..3 {
            assert_eq!(pool.map(double, 0..3000).expect("it works").len(), 3000);
        }
        assert_eq!(begun.get(), 1);
    });
}

#[test]
fn killing_a_task_ends_that_task_only() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let stuck = pool.apply_async(support::sleep_for_ever, ());
        let other = pool.map_async(nap, 0..200);
        thread::sleep(Duration::from_millis(30));
        let since = Instant::now();
        assert!(stuck.kill());
        assert!(stuck.get().is_err_and(|e| e.is_lost()));
        assert!(since.elapsed() < Duration::from_secs(5));
        assert!(
            other
                .get()
                .expect("it works")
                .into_iter()
                .eq((0..200).map(|n| n * 2))
        );
        // At the very moment that a task may be done, no other is hit.
        for n in 0..200 {
            let quick = pool.apply_async(double, (n,));
            let next: Vec<_> = (0..5).map(|n| pool.apply_async(double, (n,))).collect();
            let was_killed = quick.kill();
            match quick.get() {
                Ok(result) => assert!(!was_killed && result == n * 2),
                Err(TaskError::Lost(_) | TaskError::Cancelled) => assert!(was_killed),
                Err(other) => panic!("{other:?}"),
            }
            for (n, next) in (0..).zip(next) {
                assert_eq!(next.get().expect("nobody killed it"), n * 2);
            }
        }
    });
}

#[test]
fn time_limits_end_the_work() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let limited = || pool.batch().timeout(Duration::from_millis(100));
        let since = Instant::now();
        let before = pool.worker_pids();
        assert!(
            limited()
                .apply(support::sleep_for_ever, ())
                .is_err_and(|e| e.is_timeout())
        );
        let late = limited().apply_async(support::sleep_for_ever, ());
        let good = limited().apply_async(double, (2,));
        assert!(late.get().is_err_and(|e| e.is_timeout()));
        assert_eq!(good.get().expect("it is quick"), 4);
        assert!(since.elapsed() < Duration::from_secs(10));
        let results = limited().map_each(
            |n: u64| {
                if n % 5 == 0 {
                    support::sleep_for_ever()
                }
            },
            0..10,
        );
        let timed_out = |r: &Result<(), TaskError>| r.as_ref().is_err_and(TaskError::is_timeout);
        let late: Vec<_> = results.iter().map(timed_out).collect();
        assert!(
            late.into_iter().eq((0..10).map(|n| n % 5 == 0)),
            "{results:?}"
        );
        assert!(before.iter().all(|pid| !support::is_running(*pid)));
        assert_eq!(pool.map(double, 0..10).expect("it works").len(), 10);
    });
}

/// Neither being stopped nor blocking SIGTERM keeps a task alive, nor what it has started.
#[test]
fn time_limits_end_what_does_not_want_to_end() {
    fn stop(pid: RawValue<u64>) {
        pid.set(std::process::id().into());
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, Signal::STOP).expect("it may");
    }
    fn start_others(pid: RawValue<u64>) {
        let mut shell = std::process::Command::new("sh");
        let shell = shell
            .args(["-c", "trap '' TERM; sleep 1000 & wait; sleep 1000"])
            .spawn();
        pid.set(shell.expect("a shell").id().into());
        support::sleep_for_ever();
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        for is_stopped in [true, false] {
            let pid = RawValue::new(0u64).expect("a value");
            let limited = pool.batch().timeout(Duration::from_millis(200));
            let error = if is_stopped {
                limited.apply(stop, (pid.clone(),))
            } else {
                limited.apply(start_others, (pid.clone(),))
            };
            assert!(error.is_err_and(|e| e.is_timeout()));
            let pid = pid.get() as u32;
            assert_ne!(pid, 0);
            // Under `fork` somebody has to wait for it.
            let ended = || {
                let _ = pool.apply(double, (1,));
                !support::is_running(pid)
            };
            assert!(support::wait_until(Duration::from_secs(10), ended));
        }
        assert_eq!(pool.map(double, 0..10).expect("it works").len(), 10);
    });
}

#[test]
fn several_threads_begin_and_wait() {
    let _guard = support::guard_after(120, support::start_each_way_once);
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let pool = pool(method, 3);
        thread::scope(|scope| {
            for seed in 0..4u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 0..20 {
                        let from = seed * 1000 + round;
                        let handles: Vec<_> = (from..from + 300)
                            .map(|n| pool.apply_async(double, (n,)))
                            .collect();
                        let all = pool.map_async(double, 0..300);
                        let mut lazily = pool.imap_unordered(double, 0..100);
                        assert_eq!(pool.map(double, [seed]).expect("it works"), [seed * 2]);
                        assert!(lazily.all(|r| r.is_ok()));
                        for (n, handle) in (from..).zip(handles) {
                            assert_eq!(handle.get().expect("it works"), n * 2);
                        }
                        assert_eq!(all.get().expect("it works").len(), 300);
                    }
                });
            }
        });
    }
}

#[test]
fn a_pool_within_a_worker() {
    fn inner(n: u64) -> u64 {
        let pool = Pool::new(2).expect("a pool in a worker");
        let twice = pool.apply_async(double, (n,));
        pool.map(double, 0..n)
            .expect("it works")
            .into_iter()
            .sum::<u64>()
            + twice.get().expect("it works")
    }
    support::each_method(|method| {
        let pool = pool(method, 2);
        assert_eq!(pool.map(inner, [3, 4]).expect("it works"), [6 + 6, 12 + 8]);
    });
}

#[test]
fn what_is_left_when_the_pool_ends_is_cancelled() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let done = pool.apply_async(double, (1,));
        done.wait().expect("it can be waited for");
        let stuck: Vec<TaskHandle<()>> = (0..3000)
            .map(|_| pool.apply_async(support::sleep_for_ever, ()))
            .collect();
        let (tell, told) = mpsc::channel();
        let called = pool
            .apply_async(support::sleep_for_ever, ())
            .error_callback(move |e| tell.send(e.is_cancelled()).expect("a listener"));
        drop(pool);
        assert_eq!(done.get().expect("it was done"), 2);
        for handle in stuck {
            assert!(handle.get().is_err_and(|e| e.is_cancelled()));
        }
        assert!(called.get().is_err_and(|e| e.is_cancelled()));
        assert!(told.recv_timeout(LONG).expect("it was called"));
    });
}

#[test]
fn a_closed_pool_does_what_it_has_taken() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let handles: Vec<_> = (0..5000).map(|n| pool.apply_async(double, (n,))).collect();
        pool.close();
        pool.join().expect("it is closed");
        assert!(
            (0..)
                .zip(handles)
                .all(|(n, h)| h.get().expect("it was done") == n * 2)
        );
    });
}

// -- workers that are killed or stopped

/// Kills or stops workers at random until it is told to end; gives how many it killed.
fn disturb(pids: impl Fn() -> Vec<u32>, until: &mpsc::Receiver<()>) -> usize {
    let mut seed = 0x9e37_79b9_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let mut killed = 0;
    while until
        .recv_timeout(Duration::from_micros(random(4000)))
        .is_err()
    {
        let pids = pids();
        if pids.is_empty() {
            continue;
        }
        let pid = pids[random(pids.len() as u64) as usize];
        if random(4) == 0 {
            support::kill(pid, Signal::STOP);
            thread::sleep(Duration::from_micros(random(3000)));
            support::kill(pid, Signal::CONT);
        } else {
            killed += usize::from(support::kill(pid, Signal::KILL));
        }
    }
    killed
}

fn check(result: Result<u64, TaskError>, n: u64) -> usize {
    match result {
        Ok(result) => assert_eq!(result, n * 2),
        Err(TaskError::Lost(_)) => return 1,
        Err(other) => panic!("task {n}: {other:?}"),
    }
    0
}

#[test]
fn killed_and_stopped_workers_cost_their_own_tasks() {
    let _guard = support::guard_after(240, support::start_each_way_once);
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let pool = pool(method, 3);
        let (quit, until) = mpsc::channel();
        let (lost, killed) = thread::scope(|scope| {
            let disturber = scope.spawn(|| {
                let until = until;
                disturb(|| pool.worker_pids(), &until)
            });
            let mut lost = 0;
            for round in 0..30 {
                let called = Arc::new(AtomicUsize::new(0));
                let handles: Vec<_> = (0..1500)
                    .map(|n| {
                        let called = Arc::clone(&called);
                        let failed = Arc::clone(&called);
                        let handle = if round % 2 == 0 {
                            pool.apply_async(double, (n,))
                        } else {
                            pool.apply_async(double_slowly, (n,))
                        };
                        if n % 3 > 0 {
                            return handle;
                        }
                        handle
                            .callback(move |_| {
                                called.fetch_add(1, SeqCst);
                            })
                            .error_callback(move |_| {
                                failed.fetch_add(1, SeqCst);
                            })
                    })
                    .collect();
                let all = pool.map_async(double, 0..500);
                for (n, handle) in (0..).zip(handles) {
                    lost += check(handle.get(), n);
                }
                assert_eq!(called.load(SeqCst), 500, "each is called once");
                for (n, result) in (0..).zip(all.get_each().expect("it ends")) {
                    lost += check(result, n);
                }
            }
            quit.send(()).expect("it listens");
            (lost, disturber.join().expect("no panic"))
        });
        assert!(killed > 10, "{killed} kills are too few to say anything");
        assert!(lost <= killed, "{lost} tasks lost by {killed} kills");
        assert_eq!(pool.map(double, 0..100).expect("it works").len(), 100);
    }
}

/// Kills and stops workers of `parent` at random until it is told to end; gives how many it
/// killed. In a process of its own, so that the parent may have one thread.
fn disturb_from_outside(parent: u32, quit: RawValue<u64>) -> u64 {
    let mut killed = 0;
    for round in 0u64.. {
        thread::sleep(Duration::from_micros(round * 997 % 7000));
        if quit.get() > 0 {
            break;
        }
        let workers: Vec<u32> = support::descendants(parent)
            .into_iter()
            .filter(|pid| {
                support::ProcessState::of(*pid).is_some_and(|p| p.comm.starts_with("Worker"))
            })
            .collect();
        let Some(pid) = workers.get(round as usize % workers.len().max(1)) else {
            continue;
        };
        if round % 4 == 0 {
            support::kill(*pid, Signal::STOP);
            thread::sleep(Duration::from_micros(round * 331 % 3000));
            support::kill(*pid, Signal::CONT);
        } else {
            killed += u64::from(support::kill(*pid, Signal::KILL));
        }
    }
    killed
}

#[test]
fn killed_and_stopped_from_outside_under_each_method() {
    support::each_method(|method| {
        let quit = RawValue::new(0u64).expect("a value");
        let killer = Process::builder()
            .start_method(StartMethod::Spawn)
            .daemon(true)
            .name("killer");
        let arguments = (std::process::id(), quit.clone());
        let killer = killer.start(disturb_from_outside, arguments);
        let killer = killer.expect("a child");
        let pool = pool(method, 3);
        let mut lost = 0;
        for _ in 0..20 {
            let called = Arc::new(AtomicUsize::new(0));
            let handles: Vec<_> = (0..1200)
                .map(|n| {
                    let handle = pool.apply_async(double_slowly, (n,));
                    if n % 4 > 0 {
                        return handle;
                    }
                    let (good, bad) = (Arc::clone(&called), Arc::clone(&called));
                    handle
                        .callback(move |_| {
                            good.fetch_add(1, SeqCst);
                        })
                        .error_callback(move |_| {
                            bad.fetch_add(1, SeqCst);
                        })
                })
                .collect();
            for (n, result) in (0..).zip(pool.imap(double, 0..500)) {
                lost += check(result, n);
            }
            lost += pool
                .imap_unordered(double, 0..500)
                .filter(Result::is_err)
                .count();
            for (n, handle) in (0..).zip(handles) {
                lost += check(handle.get(), n);
            }
            assert_eq!(called.load(SeqCst), 300, "each is called once");
        }
        quit.set(1);
        let killed = killer.result().expect("no panic") as usize;
        assert!(killed > 3, "{killed} kills are too few to say anything");
        assert!(lost <= killed, "{lost} tasks lost by {killed} kills");
        assert_eq!(pool.map(double, 0..100).expect("it works").len(), 100);
    });
}

fn double_slowly(n: u64) -> u64 {
    thread::sleep(Duration::from_micros(50));
    n * 2
}

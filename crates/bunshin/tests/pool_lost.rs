//! What the error for a lost worker says: how it ended, whether for lack of memory, how much it had,
//! and its last words.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::abort;

use bunshin::{ErrorKind, Pool, Process, StartMethod, TaskError, WorkerLost, scope};
use rustix::process::Signal;

fn pool(method: StartMethod, workers: usize) -> Pool {
    let builder = Pool::builder().workers(workers).start_method(method);
    builder.build().expect("a pool can be made")
}

fn lost<R: std::fmt::Debug>(result: Result<R, TaskError>) -> WorkerLost {
    match result {
        Err(TaskError::Lost(lost)) => lost,
        other => panic!("not lost: {other:?}"),
    }
}

fn signal(lost: &WorkerLost) -> Option<i32> {
    lost.status().and_then(|status| status.signal())
}

fn kill_self() {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, Signal::KILL).expect("it may");
}

/// Panics while it is dropped.
struct Worse(u32);

impl Drop for Worse {
    fn drop(&mut self) {
        panic!("cannot clean up after {}", self.0);
    }
}

/// A panic in a destructor, while another unwinds, aborts.
fn panic_twice(number: u32) {
    let _worse = Worse(number);
    panic!("number {number} is bad");
}

#[test]
fn a_panic_that_aborts_is_told() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        let lost = lost(pool.apply(panic_twice, (17,)));
        assert_eq!(signal(&lost), Some(6));
        let words = lost.last_words();
        let first = words.find("number 17 is bad").expect("it is there");
        let second = words.find("cannot clean up after 17");
        assert!(second.expect("it is there") > first, "{words}");
        assert!(words.contains("pool_lost.rs:"), "{words}");
        let text = lost.to_string();
        assert!(text.contains("SIGABRT") && text.contains("cannot clean up after 17"));
        assert!(!lost.out_of_memory() && !text.contains("out of memory"));
        assert_eq!(pool.apply(|n: u32| n + 1, (1,)).expect("it goes on"), 2);
    });
}

#[test]
fn panics_that_are_told_in_another_way_are_no_last_words() {
    fn refuse(number: u32) {
        assert!(number > 1000, "{number} is too small");
    }
    support::each_method(|method| {
        let pool = pool(method, 1);
        for result in pool.map_each(refuse, 0..200) {
            assert!(result.is_err_and(|error| error.is_panic()));
        }
        let lost = lost(pool.apply(kill_self, ()));
        assert_eq!((signal(&lost), lost.last_words()), (Some(9), ""));
        assert!(!lost.to_string().contains("last words"));
    });
}

#[test]
fn a_panic_of_a_thread_that_the_task_has_started_is_among_them() {
    fn work() {
        let thread = std::thread::Builder::new().name("reader".into());
        let thread = thread.spawn(|| panic!("no such table"));
        assert!(thread.expect("there is room").join().is_err());
        // One that unwinds to somebody else's catch is not taken back: it was printed, too.
        let caught = catch_unwind(AssertUnwindSafe(|| panic!("caught by the task")));
        assert!(caught.is_err());
        abort();
    }
    support::each_method(|method| {
        let lost = lost(pool(method, 1).apply(work, ()));
        let words = lost.last_words();
        assert!(words.contains("thread 'reader' panicked at "), "{words}");
        assert!(words.contains("no such table"), "{words}");
        assert!(words.ends_with("caught by the task"), "{words}");
    });
}

#[test]
fn a_limit_on_the_size_of_files_makes_no_panic_fatal() {
    fn refuse_with_limit() {
        let limit = rustix::process::Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        let resource = rustix::process::Resource::Fsize;
        rustix::process::setrlimit(resource, limit).expect("less is allowed");
        panic!("as ever");
    }
    support::each_method(
        |method| match pool(method, 1).apply(refuse_with_limit, ()) {
            Err(TaskError::Panicked(panic)) => assert_eq!(panic.message(), "as ever"),
            other => panic!("{other:?}"),
        },
    );
}

#[test]
fn peak_memory_is_that_of_the_worker_that_was_lost() {
    const LARGE: usize = 96 << 20;
    fn fill(bytes: usize) {
        let mut memory = vec![1u8; bytes];
        std::hint::black_box(&mut memory);
        drop(memory);
        std::process::exit(3);
    }
    support::each_method(|method| {
        let pool = pool(method, 1);
        for (bytes, is_large) in [(LARGE, true), (1 << 10, false), (LARGE, true)] {
            let lost = lost(pool.apply(fill, (bytes,)));
            assert_eq!(lost.status().and_then(|status| status.code()), Some(3));
            let peak = lost.peak_memory().expect("the system says it");
            assert_eq!(peak > LARGE as u64, is_large, "{peak}");
            assert!(peak > 100_000);
            let mebibytes = format!("peak memory was {} MiB", peak.div_ceil(1 << 20));
            assert!(lost.to_string().contains(&mebibytes));
        }
    });
}

#[test]
fn each_loss_has_its_own_words() {
    support::each_method(|method| {
        let pool = pool(method, 1);
        let handles: Vec<_> = (0..5u32)
            .map(|number| pool.apply_async(panic_twice, (number,)))
            .collect();
        let mut pids = Vec::new();
        for (number, handle) in handles.into_iter().enumerate() {
            let lost = lost(handle.get());
            let own = format!("cannot clean up after {number}");
            assert!(lost.last_words().contains(&own), "{}", lost.last_words());
            pids.push(lost.pid());
        }
        pids.dedup();
        assert_eq!(pids.len(), 5, "one worker each");
        let results = pool.map_each(panic_twice, [7, 8]);
        for (number, result) in [7, 8].into_iter().zip(results) {
            let own = format!("number {number} is bad");
            assert!(lost(result).last_words().contains(&own));
        }
    });
}

#[test]
fn losses_leave_nothing() {
    support::each_method(|method| {
        let pool = pool(method, 2);
        for result in pool.map_each(|_: u32| kill_self(), 0..40) {
            assert_eq!(signal(&lost(result)), Some(9));
        }
        // Outcomes that nobody asks for.
        for number in 0..40 {
            drop(pool.apply_async(panic_twice, (number,)));
        }
        pool.apply(|| (), ()).expect("it goes on");
    });
}

#[test]
fn what_a_worker_said_before_it_was_ready_is_in_the_error() {
    fn begin() {
        let _worse = Worse(1);
        panic!("the settings are missing");
    }
    support::each_method(|method| {
        let builder = Pool::builder().workers(1).start_method(method);
        let pool = builder.initializer(begin, ()).build();
        let pool = pool.expect("it is not waited for");
        match pool.apply(|| (), ()) {
            Err(TaskError::Pool(error)) => {
                assert_eq!(error.kind(), ErrorKind::Initializer);
                let text = error.to_string();
                assert!(text.contains("the settings are missing"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_single_process_has_its_peak_and_no_words() {
    support::each_method(|method| {
        let builder = Process::builder().start_method(method);
        let child = builder
            .start(kill_self, ())
            .expect("a child can be started");
        let lost = lost(child.result());
        assert_eq!((signal(&lost), lost.last_words()), (Some(9), ""));
        assert!(!lost.out_of_memory());
        assert!(lost.peak_memory().is_some_and(|bytes| bytes > 100_000));
    });
}

#[test]
fn workers_that_borrow_have_last_words_too() {
    support::each_method(|method| {
        if method != StartMethod::Fork {
            return;
        }
        let bad = 3;
        let numbers = [1, 2, 3, 4];
        let results = scope(|scope| {
            scope.par().workers(2).map_each(&numbers, |number| {
                if *number == bad {
                    panic_twice(*number);
                }
                *number
            })
        });
        for (number, result) in numbers.iter().zip(results) {
            match result {
                Ok(same) => assert_eq!(same, *number),
                Err(TaskError::Lost(lost)) => {
                    assert_eq!((*number, lost.task()), (bad, Some(2)));
                    assert!(lost.last_words().contains("number 3 is bad"));
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
}

//! What processes know of each other, and what the forkserver preloads.

mod support;

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bunshin::{
    Context, ErrorKind, Fork, Lock, Process, StartMethod, Value, active_children, channel,
    cpu_count, current_process, parent_process, set_forkserver_preload, wait,
};
use rustix::process::Signal;
use support::{each_method, wait_until};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

/// Runs `body` in a child that has one thread and nothing else.
fn in_child<F: Fn() + Copy + 'static>(body: F) {
    let _guard = support::guard(120);
    let child = Process::builder()
        .start_method(StartMethod::Spawn)
        .start(body, ());
    if let Err(error) = child.expect("a child can be started").result() {
        panic!("in a child: {error}");
    }
}

type Known = (String, u32, bool, Option<StartMethod>, bool);

fn known() -> Known {
    let own = current_process();
    let name = own.name().to_owned();
    (
        name,
        own.pid(),
        own.is_daemon(),
        own.start_method(),
        own.is_main(),
    )
}

type Above = (String, u32, bool);

fn above() -> Above {
    let parent = parent_process().expect("it can be watched");
    let parent = parent.expect("there is one");
    assert!(
        !parent
            .join_timeout(Duration::ZERO)
            .expect("it can be waited for")
    );
    assert_eq!(
        wait(&[&parent], Some(Duration::ZERO)).expect("as above"),
        []
    );
    (parent.name().to_owned(), parent.pid(), parent.is_alive())
}

#[test]
fn a_process_knows_itself_and_its_parent() {
    each_method(|method| {
        let child = Process::builder()
            .name("reader")
            .daemon(true)
            .start_method(method)
            .start(known, ())
            .unwrap();
        let pid = child.pid();
        let expected = ("reader".to_owned(), pid, true, Some(method), false);
        assert_eq!(child.result().unwrap(), expected);
        let child = Context::new(method).process().start(above, ()).unwrap();
        let own = (
            current_process().name().to_owned(),
            std::process::id(),
            true,
        );
        assert_eq!(child.result().unwrap(), own);
    });
}

#[test]
fn names_count_the_children_of_each_process() {
    each_method(|method| {
        let nested = |method: StartMethod| {
            let start = || {
                let child = Process::builder()
                    .start_method(method)
                    .start(|| known().0, ());
                child.unwrap().result().unwrap()
            };
            (known().0, start(), start(), above().0)
        };
        let child = Process::builder()
            .start_method(method)
            .start(nested, (method,))
            .unwrap();
        let name = child.name().to_owned();
        let (own, first, second, parent) = child.result().unwrap();
        assert_eq!(own, name);
        assert_eq!((first, second), (format!("{name}:1"), format!("{name}:2")));
        assert_eq!(parent, current_process().name());
        // Workers of pools have their own way of counting.
        let pool = Context::new(method).pool(1).unwrap();
        let worker = pool.map(|_: ()| (known(), above()), [()]).unwrap();
        let ((name, _, is_daemon, how, _), (parent, pid, _)) = &worker[0];
        assert_eq!(
            (name.as_str(), *is_daemon, *how),
            ("Worker-1", true, Some(method))
        );
        assert_eq!(
            (parent.as_str(), *pid),
            (current_process().name(), std::process::id())
        );
    });
}

#[test]
fn the_first_process_is_the_main_process() {
    let _guard = support::guard(30);
    let own = current_process();
    assert!(own.is_main() && !own.is_daemon());
    assert_eq!((own.name(), own.pid()), ("MainProcess", std::process::id()));
    assert_eq!(own.start_method(), None);
    assert!(parent_process().unwrap().is_none());
    assert!((1..=thread::available_parallelism().unwrap().get() + 1).contains(&cpu_count()));
}

#[test]
fn only_processors_that_it_may_use_are_counted() {
    in_child(|| {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let all = sched_getaffinity(None).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap());
        for method in StartMethod::ALL {
            sched_setaffinity(None, &one).unwrap();
            let child = Process::builder().start_method(method);
            let child = child.start(cpu_count, ()).unwrap();
            let counts = (cpu_count(), child.result().unwrap());
            assert_eq!(counts, (1, 1), "{method}");
            sched_setaffinity(None, &all).unwrap();
            assert!((1..=all.count() as usize).contains(&cpu_count()));
        }
    });
}

#[test]
fn an_orphan_sees_that_its_parent_is_gone() {
    in_child(|| {
        let (sender, receiver) = channel().unwrap();
        // The middle process copies itself and ends; the copy goes on.
        let middle = |sender: bunshin::Sender<(String, bool, bool)>| match bunshin::fork() {
            Ok(Fork::Parent(_)) => end_here(),
            Ok(Fork::Child) => {
                let parent = parent_process().unwrap().expect("there is one");
                parent.join().unwrap();
                let late = parent_process().unwrap().expect("it is known all the same");
                assert_eq!(wait(&[&late], None).unwrap(), [0]);
                assert!(late.join_timeout(Duration::ZERO).unwrap());
                let _ = late.sentinel().as_fd();
                let seen = (parent.name().to_owned(), parent.is_alive(), late.is_alive());
                sender.send(seen).unwrap();
                end_here()
            }
            Err(error) => panic!("{error}"),
        };
        let child = Process::builder()
            .name("middle")
            .start_method(StartMethod::Spawn)
            .start(middle, (sender,))
            .unwrap();
        let seen = receiver.recv_timeout(LONG).unwrap();
        assert_eq!(seen, ("middle".to_owned(), false, false));
        child.join().unwrap();
    });
}

fn end_here() {
    std::process::exit(0)
}

#[test]
fn living_children_are_listed_in_order() {
    each_method(|method| {
        let before = active_children().len();
        assert_eq!(before, 0);
        let start = |name: &str| {
            let builder = Process::builder().name(name).start_method(method);
            builder.start(support::sleep_for_ever, ()).unwrap()
        };
        let (first, second, third) = (start("first"), start("second"), start("third"));
        let pool = Context::new(method).pool(1).unwrap();
        let names = || {
            let children = active_children();
            children
                .iter()
                .map(|child| child.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(), ["first", "second", "third", "Worker-1"]);
        pool.terminate();
        // One whose handle is dropped is still a child, and can be ended.
        let pid = second.pid();
        drop(second);
        assert_eq!(names(), ["first", "third", "second"]);
        for child in active_children().iter().filter(|child| child.pid() == pid) {
            child.kill().unwrap();
            assert_eq!(child.join().unwrap().signal(), Some(9));
        }
        first.kill().unwrap();
        first.join().unwrap();
        assert_eq!(names(), ["third"]);
        // The handles are as good as the first ones.
        let again = active_children().pop().unwrap();
        again.terminate().unwrap();
        assert_eq!(third.join().unwrap().signal(), Some(15));
        assert_eq!(again.exit_status(), third.exit_status());
        // A child has none of its parent's.
        let other = start("other");
        let child = Process::builder()
            .start_method(method)
            .start(|| active_children().len(), ());
        assert_eq!(child.unwrap().result().unwrap(), 0);
        other.kill().unwrap();
        other.join().unwrap();
        assert!(active_children().is_empty());
    });
}

#[test]
fn a_handle_is_closed_once_its_child_has_ended() {
    each_method(|method| {
        let child = Process::builder()
            .start_method(method)
            .start(support::sleep_for_ever, ());
        let child = child.unwrap().close().expect_err("it still runs");
        // However early it comes.
        child.interrupt().unwrap();
        assert_eq!(child.join_timeout(LONG).unwrap().unwrap().signal(), Some(2));
        assert_eq!(child.close().expect("it has ended").signal(), Some(2));
        let child = Process::builder()
            .start_method(method)
            .start(|| (), ())
            .unwrap();
        child.join().unwrap();
        assert!(child.close().expect("it has ended").success());
    });
}

static LOADED: OnceLock<(u32, Value<u64>)> = OnceLock::new();
static TIMES: AtomicUsize = AtomicUsize::new(0);

fn load() {
    print!("half a line that no child prints again");
    LOADED.get_or_init(|| (std::process::id(), Value::new(0).expect("there is memory")));
    TIMES.fetch_add(1, Ordering::Relaxed);
}

/// What was loaded, as a child of the forkserver sees it; counts the lookers.
fn look() -> Option<(u32, u64, usize)> {
    let (pid, lookers) = LOADED.get()?;
    let mut lookers = lookers.lock().ok()?;
    *lookers += 1;
    Some((*pid, *lookers, TIMES.load(Ordering::Relaxed)))
}

fn forked<F>(target: F) -> F::Output
where
    F: bunshin::Target<()>,
    F::Output: serde::Serialize + serde::de::DeserializeOwned,
{
    let builder = Process::builder().start_method(StartMethod::Forkserver);
    builder.start(target, ()).unwrap().result().unwrap()
}

#[test]
fn children_of_the_forkserver_have_what_it_preloaded() {
    in_child(|| {
        assert_eq!(forked(look), None);
        let running = Process::builder()
            .start_method(StartMethod::Forkserver)
            .start(support::sleep_for_ever, ())
            .unwrap();
        set_forkserver_preload(load).unwrap();
        assert!(running.is_alive(), "its children go on");
        running.kill().unwrap();
        running.join().unwrap();
        let (pid, lookers, times) = forked(look).expect("it is loaded");
        assert_eq!((lookers, times), (1, 1));
        assert_ne!(pid, std::process::id(), "it was loaded in the server");
        assert_eq!(forked(look), Some((pid, 2, 1)), "they share the value");
        // Children of other kinds load for themselves.
        let spawned = Process::builder()
            .start_method(StartMethod::Spawn)
            .start(look, ());
        assert_eq!(spawned.unwrap().result().unwrap(), None);
        // A server that was killed is replaced by one that has loaded again.
        support::kill(pid, Signal::KILL);
        let (mut new, mut lookers, mut times) = forked(look).expect("it is loaded");
        if new == pid {
            // The child that the old server had made ahead.
            (new, lookers, times) = forked(look).expect("it is loaded");
        }
        assert_ne!(new, pid);
        assert_eq!((lookers, times), (1, 1));
        set_forkserver_preload(|| ()).unwrap();
        assert_eq!(forked(look), None);
    });
}

#[test]
fn what_goes_wrong_in_a_preload_reaches_its_caller() {
    in_child(|| {
        set_forkserver_preload(load).unwrap();
        let check = |error: bunshin::Error, kind: ErrorKind, words: &str| {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        };
        let error = set_forkserver_preload(|| {
            if current_process().is_main() {
                panic!("no such table");
            }
        });
        check(error.unwrap_err(), ErrorKind::Initializer, "no such table");
        let error = set_forkserver_preload(|| Err::<(), _>("not to be read"));
        check(error.unwrap_err(), ErrorKind::Initializer, "not to be read");
        let error = set_forkserver_preload(|| -> () { std::process::exit(3) });
        check(error.unwrap_err(), ErrorKind::Initializer, "exit code 3");
        let error = set_forkserver_preload(|| -> () { std::process::abort() });
        check(error.unwrap_err(), ErrorKind::Initializer, "SIGABRT");
        let error = set_forkserver_preload(|| {
            thread::spawn(support::sleep_for_ever);
        });
        check(error.unwrap_err(), ErrorKind::Threads, "2 threads");
        // A thread that has been joined is no obstacle; the earlier function is still in force.
        assert!(forked(look).is_some());
        set_forkserver_preload(|| thread::spawn(load).join().map_err(|_| "it panicked")).unwrap();
        assert!(forked(look).is_some());
        let below = support::descendants(std::process::id());
        // It may have made a child that is not in use yet.
        assert!(below.len() <= 2, "one forkserver is left: {below:?}");
    });
}

#[test]
fn a_server_killed_while_it_preloads_is_an_error_and_no_hang() {
    in_child(|| {
        for round in 0..20 {
            let killer = thread::spawn(move || {
                let server = || {
                    let below = support::descendants(std::process::id());
                    below.first().copied()
                };
                assert!(wait_until(LONG, || server().is_some()));
                thread::sleep(Duration::from_micros(200 * round));
                support::kill(server().expect("it waits to be killed"), Signal::KILL);
            });
            let error = set_forkserver_preload(support::sleep_for_ever).expect_err("it was killed");
            killer.join().unwrap();
            let is_told = matches!(
                error.kind(),
                ErrorKind::Initializer | ErrorKind::Disconnected
            );
            assert!(is_told, "{error:?}");
        }
        // Nothing was kept of it.
        assert_eq!(forked(look), None);
        let lock = Lock::new().unwrap();
        assert!(lock.lock().is_ok());
    });
}

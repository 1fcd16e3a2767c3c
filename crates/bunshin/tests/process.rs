//! Processes: what crosses to a child and back, how children end, and what they
//! leave behind, under every start method.

#[path = "process/shapes.rs"]
mod shapes;
mod support;

use std::time::Duration;
use std::{fs, io, thread};

use bunshin::{Process, Receiver, StartMethod, TaskError, channel, set_start_method, start_method};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use support::{is_running, start, under_each_start_method, wait_until};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

/// The fixture's guard, for when the forkserver is there already.
fn guard(seconds: u64) -> support::Guard {
    support::guard_after(seconds, || {
        let child = Process::start(|| (), ()).expect("a child can be started");
        assert!(child.join().expect("it can be joined").success());
    })
}

/// Runs `body` in a child that has one thread and nothing else; not checked for leaks,
/// for what changes the process itself.
fn in_child<F: Fn() + Copy + 'static>(body: F) {
    let child = Process::builder()
        .start_method(StartMethod::Spawn)
        .start(body, ());
    if let Err(error) = child.expect("a child can be started").result() {
        panic!("in a child: {error}");
    }
}

#[test]
fn a_child_has_its_name_and_pid() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let comm = || fs::read_to_string("/proc/self/comm").expect("/proc is mounted");
        let child = Process::builder()
            .name("reader")
            .start_method(method)
            .start(comm, ())
            .unwrap();
        assert_eq!(child.name(), "reader");
        assert_eq!(child.result().unwrap().trim_end(), "reader");
        // Names that the system cannot take whole, or at all, are no obstacle.
        for name in [
            "a name of more than fifteen bytes",
            "zero\0inside",
            "日本語の名前",
            "",
        ] {
            let child = Process::builder()
                .name(name)
                .start_method(method)
                .start(|| (), ())
                .unwrap();
            assert_eq!(child.name(), name);
            assert!(child.join().unwrap().success());
        }
        let first = start(
            method,
            || (std::process::id(), std::os::unix::process::parent_id()),
            (),
        );
        assert!(first.name().starts_with("Process-"), "{}", first.name());
        assert!(!first.is_daemon());
        let pid = first.pid();
        assert_eq!(first.result().unwrap(), (pid, std::process::id()));
    });
}

#[test]
fn a_child_can_be_joined_in_every_way_and_more_than_once() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let child = start(method, support::sleep_for_ever, ());
        assert!(child.is_alive());
        assert!(child.try_join().unwrap().is_none());
        assert!(child.exit_status().is_none());
        assert!(
            child
                .join_timeout(Duration::from_millis(20))
                .unwrap()
                .is_none()
        );
        assert!(child.join_timeout(Duration::ZERO).unwrap().is_none());
        child.kill().unwrap();
        let status = child.join_timeout(LONG).unwrap().expect("it was killed");
        assert_eq!((status.signal(), status.code()), (Some(9), None));
        assert!(!child.is_alive());
        for again in [child.join().unwrap(), child.try_join().unwrap().unwrap()] {
            assert_eq!(again, status);
        }
        assert_eq!(child.exit_status(), Some(status));
        assert_eq!(child.join_timeout(Duration::MAX).unwrap(), Some(status));
        // What has ended can be ended again.
        child.kill().unwrap();
        child.terminate().unwrap();
    });
}

#[test]
fn a_result_waits_for_him_who_has_joined_first() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let child = start(method, || vec![7u8; 4 << 20], ());
        assert!(
            child
                .join_timeout(LONG)
                .unwrap()
                .expect("nothing holds it up")
                .success()
        );
        assert_eq!(child.result().unwrap().len(), 4 << 20);
    });
}

#[test]
fn the_exit_status_says_how_it_ended() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let join = |child: Process<()>| child.join().unwrap();
        for code in [0, 1, 3, 255] {
            let child = start(method, |code: i32| std::process::exit(code), (code,));
            assert_eq!(join(child).code(), Some(code));
        }
        assert_eq!(
            join(start(method, || panic!("expected"), ())).code(),
            Some(1)
        );
        assert_eq!(
            join(start(method, || std::process::abort(), ())).signal(),
            Some(6)
        );
        for signal in [
            Signal::TERM,
            Signal::KILL,
            Signal::SEGV,
            Signal::INT,
            Signal::USR1,
        ] {
            let child = start(method, support::sleep_for_ever, ());
            support::kill(child.pid(), signal);
            assert_eq!(join(child).signal(), Some(signal.as_raw()), "{method}");
        }
        let child = start(method, support::sleep_for_ever, ());
        child.terminate().unwrap();
        assert_eq!(join(child).to_string(), "signal 15 (SIGTERM)");
    });
}

/// Uses up the stack.
fn overflow(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 64]);
    if depth == u64::MAX {
        0
    } else {
        overflow(depth + 1) + room[3]
    }
}

#[test]
fn a_child_that_ends_without_a_result_is_lost() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let lost = |child: Process<u64>| {
            let pid = child.pid();
            match child.result() {
                Err(TaskError::Lost(lost)) => {
                    assert_eq!(lost.pid(), pid);
                    lost.status().expect("the system knows how it ended")
                }
                other => panic!("{method}: {other:?}"),
            }
        };
        let exits = start(method, || -> u64 { std::process::exit(0) }, ());
        assert_eq!(lost(exits).code(), Some(0));
        let killed = start(
            method,
            || -> u64 {
                loop {
                    thread::park()
                }
            },
            (),
        );
        killed.kill().unwrap();
        assert_eq!(lost(killed).signal(), Some(9));
        let signal = lost(start(method, overflow, (0u64,))).signal();
        assert!(matches!(signal, Some(6 | 11)), "{method}: {signal:?}");
    });
}

#[test]
fn a_panic_is_a_typed_error_with_message_and_place() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let panic = |child: Process<u8>| match child.result() {
            Err(TaskError::Panicked(panic)) => panic,
            other => panic!("{method}: {other:?}"),
        };
        let line = line!() + 1;
        let fixed = panic(start(method, || -> u8 { panic!("no luck") }, ()));
        assert_eq!(fixed.message(), "no luck");
        let place = fixed.location().expect("panics have a place");
        assert!(place.contains(&format!("process.rs:{line}:")), "{place}");
        let formatted = panic(start(method, |n: u8| -> u8 { panic!("no {n}") }, (13,)));
        assert_eq!(formatted.message(), "no 13");
        // Not printed: nobody wants to read it.
        let long = || -> u8 {
            std::panic::set_hook(Box::new(|_| ()));
            panic!("{}", "x".repeat(1 << 20))
        };
        assert_eq!(panic(start(method, long, ())).message().len(), 1 << 20);
        let odd = panic(start(method, || -> u8 { std::panic::panic_any(7u8) }, ()));
        assert!(!odd.message().is_empty());
        let index = panic(start(method, |list: Vec<u8>| list[3], (vec![1],)));
        assert!(
            index.message().contains("out of bounds"),
            "{}",
            index.message()
        );
    });
}

#[test]
fn the_sentinel_is_readable_once_the_child_has_ended() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (sender, receiver) = channel::<()>().unwrap();
        let child = start(method, |go: Receiver<()>| drop(go.recv()), (receiver,));
        let readable = |timeout: Duration| {
            let sentinel = child.sentinel();
            let mut watched = [PollFd::new(&sentinel, PollFlags::IN)];
            let timeout = Timespec::try_from(timeout).unwrap();
            rustix::event::poll(&mut watched, Some(&timeout)).unwrap() == 1
        };
        assert!(!readable(Duration::from_millis(20)));
        sender.send(()).unwrap();
        assert!(readable(LONG));
        assert!(
            child
                .try_join()
                .unwrap()
                .is_some_and(|status| status.success())
        );
        // It stays so, also after the child has been collected.
        assert!(readable(Duration::ZERO));
    });
}

#[test]
fn a_stopped_child_can_be_killed() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let child = start(method, support::sleep_for_ever, ());
        support::kill(child.pid(), Signal::STOP);
        let state = || support::ProcessState::of(child.pid()).map(|process| process.state);
        assert!(wait_until(LONG, || state() == Some('T')));
        assert!(child.is_alive());
        child.terminate().unwrap();
        assert!(
            child
                .join_timeout(Duration::from_millis(50))
                .unwrap()
                .is_none()
        );
        child.kill().unwrap();
        assert_eq!(child.join_timeout(LONG).unwrap().unwrap().signal(), Some(9));
    });
}

#[test]
fn a_dropped_daemon_is_killed_and_others_live_on() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let daemon = Process::builder().daemon(true).start_method(method);
        let daemon = daemon.start(support::sleep_for_ever, ()).unwrap();
        assert!(daemon.is_daemon());
        let pid = daemon.pid();
        drop(daemon);
        assert!(!is_running(pid), "{method}: the daemon lives on");

        let (go, wait) = channel::<()>().unwrap();
        let (done, is_done) = channel::<u32>().unwrap();
        let child = start(
            method,
            |wait: Receiver<()>, done: bunshin::Sender<u32>| {
                wait.recv().unwrap();
                done.send(std::process::id()).unwrap();
            },
            (wait, done),
        );
        let pid = child.pid();
        drop(child);
        assert!(
            is_running(pid),
            "{method}: dropping the handle has ended the child"
        );
        go.send(()).unwrap();
        assert_eq!(is_done.recv().unwrap(), pid);
        assert!(wait_until(LONG, || !is_running(pid)));
        // The next start collects it.
        assert!(start(method, || (), ()).join().unwrap().success());
    });
}

#[test]
fn a_process_waits_at_its_end_for_children_that_are_no_daemons() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (done, is_done) = channel::<u8>().unwrap();
        let parent = start(
            method,
            |method: String, done: bunshin::Sender<u8>| {
                let late = |done: bunshin::Sender<u8>| {
                    thread::sleep(Duration::from_millis(300));
                    done.send(7).expect("somebody waits for it");
                };
                drop(start(method.parse().expect("it is one"), late, (done,)));
            },
            (method.to_string(), done),
        );
        assert!(
            matches!(is_done.recv(), Ok(7)),
            "{method}: the grandchild did not get to its end"
        );
        assert!(parent.join().unwrap().success());
    });
}

#[test]
fn a_thousand_starts_and_joins_leave_nothing() {
    let _guard = guard(170);
    under_each_start_method(|method| {
        let own = std::process::id();
        let before = support::open_descriptors(own);
        for number in 0..1000u32 {
            let child = start(method, |number: u32| number + 1, (number,));
            match number % 3 {
                0 => assert_eq!(child.result().unwrap(), number + 1),
                1 => assert!(child.join().unwrap().success()),
                _ => assert!(child.join_timeout(LONG).unwrap().unwrap().success()),
            }
        }
        // The guards compare children and mappings too; this says so at once.
        assert_eq!(support::open_descriptors(own), before, "{method}");
    });
}

#[test]
fn many_threads_start_children_at_once() {
    let _guard = guard(120);
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let threads: Vec<_> = (0..8u32)
            .map(|thread| {
                thread::spawn(move || {
                    for number in 0..25 {
                        let sum = |a: u32, b: u32| a * 1000 + b;
                        let child = start(method, sum, (thread, number));
                        assert_eq!(child.result().unwrap(), thread * 1000 + number);
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn children_outlive_the_thread_that_started_them() {
    let _guard = guard(60);
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let (go, wait) = channel::<()>().unwrap();
        let run = move || start(method, |wait: Receiver<()>| wait.recv().is_ok(), (wait,));
        let child = thread::spawn(run).join().unwrap();
        // Long enough for the system to have ended it with its thread.
        assert!(
            child
                .join_timeout(Duration::from_millis(100))
                .unwrap()
                .is_none(),
            "{method}"
        );
        go.send(()).unwrap();
        assert!(child.result().unwrap());
    }
}

/// A child of a child and so on, which answers with its depth.
fn descend(depth: u32, method: String) -> Vec<u32> {
    let mut pids = vec![std::process::id()];
    if depth > 0 {
        let next = start(method.parse().unwrap(), descend, (depth - 1, method));
        pids.extend(next.result().expect("the next one answers"));
    }
    pids
}

#[test]
fn children_have_children_of_their_own() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        for below in StartMethod::ALL {
            let mut pids = start(method, descend, (3, below.to_string()))
                .result()
                .unwrap();
            pids.sort_unstable();
            pids.dedup();
            assert_eq!(pids.len(), 4, "{method}, then {below}");
        }
    });
}

#[test]
fn a_child_has_its_parents_arguments_and_no_trace_of_its_start() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (args, vars) = start(
            method,
            || {
                let vars: Vec<String> = std::env::vars_os()
                    .map(|(name, _)| name.to_string_lossy().into_owned())
                    .collect();
                (std::env::args().collect::<Vec<_>>(), vars)
            },
            (),
        )
        .result()
        .unwrap();
        assert_eq!(args, std::env::args().collect::<Vec<_>>(), "{method}");
        assert!(
            !vars.iter().any(|name| name == "BUNSHIN_START"),
            "{method}: {vars:?}"
        );
        assert!(vars.iter().any(|name| name == "PATH"), "{method}: {vars:?}");
    });
}

#[test]
fn a_child_starts_in_its_parents_directory() {
    use std::os::unix::ffi::OsStrExt;
    let _guard = guard(60);
    in_child(|| {
        let root = std::env::temp_dir().join(format!("bunshin-directory-{}", std::process::id()));
        let odd = root.join(std::ffi::OsStr::from_bytes(b"not \xff UTF-8"));
        fs::create_dir_all(&odd).unwrap();
        // Whatever the forkserver was started in, each child begins where its parent is.
        for directory in ["/".as_ref(), root.as_path(), odd.as_path(), "/usr".as_ref()] {
            std::env::set_current_dir(directory).unwrap();
            for method in StartMethod::ALL {
                let here = || {
                    std::env::current_dir()
                        .unwrap()
                        .as_os_str()
                        .as_bytes()
                        .to_vec()
                };
                let child = Process::builder().start_method(method).start(here, ());
                let there =
                    child.unwrap_or_else(|error| panic!("{method} in {directory:?}: {error}"));
                assert_eq!(
                    there.result().unwrap(),
                    directory.as_os_str().as_bytes(),
                    "{method}"
                );
            }
        }
        fs::remove_dir_all(&root).unwrap();
    });
}

#[test]
fn the_default_start_method_can_be_set_and_is_not_inherited() {
    let _guard = guard(60);
    in_child(|| {
        assert_eq!(start_method(), StartMethod::Forkserver);
        for method in StartMethod::ALL {
            set_start_method(method);
            assert_eq!(start_method(), method);
            let child = Process::start(|| start_method().to_string(), ()).unwrap();
            assert_eq!(
                child.result().unwrap(),
                "forkserver",
                "in a child under {method}"
            );
        }
    });
    assert!("thread".parse::<StartMethod>().is_err());
}

/// What the next test looks at from outside; it runs only when that test asks for it.
#[test]
fn what_children_print() {
    if std::env::var_os("PRINT_FROM_CHILDREN").is_none() {
        return;
    }
    under_each_start_method(|method| {
        print!("before {method};");
        let child = start(
            method,
            |method: String| println!("said by {method}"),
            (method.to_string(),),
        );
        assert!(child.join().unwrap().success());
        let child = start(
            method,
            |method: String| -> () { panic!("cried by {method}") },
            (method.to_string(),),
        );
        assert_eq!(child.join().unwrap().code(), Some(1));
    });
}

#[test]
fn a_panic_of_a_child_is_on_stderr_with_its_place() -> io::Result<()> {
    let _guard = guard(60);
    let output = std::process::Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "what_children_print",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("PRINT_FROM_CHILDREN", "1")
        .output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for method in StartMethod::ALL {
        let cry = format!("cried by {method}\n");
        assert_eq!(stderr.matches(&cry).count(), 1, "{stderr}");
        let before = stderr.split(&cry).next().unwrap_or_default();
        assert!(
            before
                .trim_end()
                .rsplit('\n')
                .next()
                .unwrap_or_default()
                .contains("process.rs:"),
            "{stderr}"
        );
        // Once each, and in the order in which it was printed.
        let said = format!("before {method};said by {method}\n");
        assert_eq!(stdout.matches(&said).count(), 1, "{method}: {stdout:?}");
    }
    Ok(())
}

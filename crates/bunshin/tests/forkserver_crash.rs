//! The forkserver and the child that it keeps ahead: whoever of them is killed, and when.
#![allow(
    unsafe_code,
    reason = "a filter for system calls is set through the C library"
)]

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{Process, StartMethod, TaskError};
use rustix::process::Signal;
use support::{ProcessState, is_running, kill, wait_until};

mod support;

/// Longer than anything here takes; only a hang takes longer.
const LONG: Duration = Duration::from_secs(30);

/// The fixture's guard, for when the forkserver is there already.
fn guard(seconds: u64) -> support::Guard {
    support::guard_after(seconds, support::start_each_way_once)
}

fn start(number: u32) -> Process<u32> {
    Process::builder()
        .start_method(StartMethod::Forkserver)
        .start(|number: u32| number * 2, (number,))
        .expect("a child can be started")
}

fn twice(number: u32) -> u32 {
    start(number).result().expect("nobody has killed it")
}

/// The living processes of this one that look like a forkserver.
fn helpers() -> BTreeSet<u32> {
    let own = std::process::id();
    let is_helper = |pid: &u32| {
        ProcessState::of(*pid)
            .is_some_and(|p| p.comm == "bunshin-fs" && p.state != 'Z' && p.parent == own)
    };
    support::descendants(own)
        .into_iter()
        .filter(is_helper)
        .collect()
}

/// The forkserver of this process, and its spare child once it is there.
fn server_and_spare() -> (u32, u32) {
    // The first may use the spare of a server that is gone.
    assert_eq!((twice(1), twice(2)), (2, 4));
    let before = helpers();
    assert_eq!(twice(1), 2);
    assert!(wait_until(LONG, || helpers().len() == 2), "{:?}", helpers());
    let now = helpers();
    // The spare of before has been used: only the server is still there.
    let server = now.intersection(&before).next().expect("a server stays");
    let spare = now.iter().find(|pid| *pid != server);
    (*server, *spare.expect("there are two"))
}

fn n_zombies() -> usize {
    support::descendants(std::process::id())
        .into_iter()
        .filter(|pid| ProcessState::of(*pid).is_some_and(|p| p.state == 'Z'))
        .count()
}

#[test]
fn the_spare_is_the_next_child() {
    let _guard = guard(60);
    for _ in 0..20 {
        let (_, spare) = server_and_spare();
        let child = start(21);
        assert_eq!(child.pid(), spare);
        assert_eq!(child.result().unwrap(), 42);
    }
}

#[test]
fn a_spare_outlives_its_server() {
    let _guard = guard(60);
    for _ in 0..20 {
        let (server, spare) = server_and_spare();
        kill(server, Signal::KILL);
        assert!(wait_until(LONG, || !is_running(server)));
        assert!(is_running(spare));
        let child = start(21);
        assert_eq!(child.pid(), spare);
        assert_eq!(child.result().unwrap(), 42);
        // The next one needs a new server.
        assert_eq!(twice(3), 6);
        assert_eq!(n_zombies(), 0);
    }
}

#[test]
fn a_dead_spare_is_replaced_and_collected() {
    let _guard = guard(60);
    for signal in [Signal::KILL, Signal::INT, Signal::TERM, Signal::SEGV] {
        for round in 0..10 {
            let (server, spare) = server_and_spare();
            kill(spare, signal);
            if round % 2 == 0 {
                assert!(wait_until(LONG, || !is_running(spare)), "{signal:?}");
                assert_eq!(twice(round), 2 * round, "{signal:?}");
            } else {
                // It may end before or after it is put to use.
                match start(round).result() {
                    Ok(result) => assert_eq!(result, 2 * round),
                    Err(TaskError::Lost(lost)) => assert_eq!(lost.pid(), spare),
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(twice(4), 8);
            assert!(is_running(server));
        }
    }
    // What had not ended yet when it was looked at is collected at a later start.
    assert!(wait_until(LONG, || {
        assert_eq!(twice(5), 10);
        n_zombies() == 0
    }));
}

#[test]
fn a_server_killed_while_it_makes_a_spare_leaves_none() {
    let _guard = guard(120);
    for round in 0..300u64 {
        let (server, _) = server_and_spare();
        let child = start(7);
        // Somewhere between the order, the clone, the answer, and long after it.
        let delay = Duration::from_nanos(round * 7919 % 300_000);
        let asked = Instant::now();
        while asked.elapsed() < delay {
            std::hint::spin_loop();
        }
        kill(server, Signal::KILL);
        assert_eq!(child.result().unwrap(), 14);
        assert!(wait_until(LONG, || !is_running(server)));
    }
    assert!(wait_until(LONG, || {
        assert_eq!(twice(5), 10);
        n_zombies() == 0 && helpers().len() <= 2
    }));
}

#[test]
fn a_spare_ends_with_the_process() {
    let _guard = guard(60);
    for signal in [None, Some(Signal::KILL), Some(Signal::TERM)] {
        let (sender, receiver) = bunshin::channel::<(u32, u32)>().unwrap();
        let parent = Process::builder()
            .start_method(StartMethod::Spawn)
            .start(
                |sender: bunshin::Sender<(u32, u32)>, stays: bool| {
                    sender.send(server_and_spare()).unwrap();
                    if stays {
                        thread::sleep(LONG);
                    }
                },
                (sender, signal.is_some()),
            )
            .unwrap();
        let (server, spare) = receiver.recv().unwrap();
        if let Some(signal) = signal {
            kill(parent.pid(), signal);
        }
        parent.join().unwrap();
        let are_gone = || !is_running(server) && !is_running(spare);
        assert!(wait_until(Duration::from_secs(5), are_gone), "{signal:?}");
    }
}

#[test]
fn a_forked_child_leaves_the_spare_alone() {
    let _guard = guard(60);
    // A process under a test harness has several threads, which may not be forked.
    let body = || {
        let (server, spare) = server_and_spare();
        bunshin::scope(|scope| {
            let forked = scope.spawn(|| {
                assert_eq!(twice(4), 8);
                assert!(!helpers().contains(&server));
                std::process::id()
            });
            forked.unwrap().result().unwrap();
        });
        assert!(is_running(server));
        let child = start(6);
        assert_eq!(child.pid(), spare);
        assert_eq!(child.result().unwrap(), 12);
    };
    let child = Process::builder()
        .start_method(StartMethod::Spawn)
        .start(body, ());
    child.unwrap().result().unwrap();
}

#[test]
fn the_forkserver_works_where_clone3_is_refused() {
    let _guard = guard(60);
    let body = || {
        refuse_clone3(libc::ENOSYS as u32);
        for number in 0..20 {
            assert_eq!(twice(number), 2 * number);
        }
    };
    let child = Process::builder()
        .start_method(StartMethod::Spawn)
        .start(body, ());
    child.unwrap().result().unwrap();
}

/// Has the system answer `clone3` with an error, in this process and all below, as container
/// profiles do.
fn refuse_clone3(error: u32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let skip_unless_equal = libc::sock_filter {
        jf: 1,
        ..statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::SYS_clone3 as u32,
        )
    };
    let mut filter = [
        // The number of the system call is the first word of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        skip_unless_equal,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | error),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: sets a flag of this process.
    let rc = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(rc, 0);
    // SAFETY: the program points at four instructions, which the kernel copies and checks.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: without arguments the call could only fail; with the filter it fails as asked.
    let rc = unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
    let refused = std::io::Error::last_os_error().raw_os_error();
    assert_eq!((rc, refused), (-1, Some(error as i32)));
}

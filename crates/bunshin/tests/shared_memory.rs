//! Shared memory, with a name and without: who sees it, who owns it, and what is left of it.

mod support;

use std::fs;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bunshin::{ErrorKind, Fork, Process, SharedMemory, StartMethod, fork};
use rustix::process::Signal;
use support::wait_until;

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

/// The fixture's guard, for when what a process makes once is there already.
fn guard(seconds: u64) -> support::Guard {
    support::guard_after(seconds, support::start_each_way_once)
}

/// A name that no other test has.
fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("bunshin-test-{}-{count}", std::process::id())
}

fn exists(name: &str) -> bool {
    fs::symlink_metadata(format!("/dev/shm/{name}")).is_ok()
}

fn names_with(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/dev/shm").expect("it can be listed");
    let names = entries.map(|entry| entry.expect("it can be listed").file_name());
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn python(program: &str, arguments: &[&str]) -> String {
    let output = Command::new("python3")
        .args(["-c", program])
        .args(arguments)
        .output()
        .expect("python3 can be started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaint}");
    said
}

#[test]
fn it_reaches_children_under_every_start_method() {
    support::each_method(|method| {
        let plain = SharedMemory::new(10_000).unwrap();
        let name = name();
        let named = SharedMemory::create(&name, 5000).unwrap();
        assert!(named.is_owner() && !plain.is_owner());
        assert_eq!((plain.name(), named.name()), (None, Some(&*name)));
        let work = |plain: SharedMemory, named: SharedMemory| {
            assert!(!named.is_owner(), "a child never owns");
            assert_eq!((plain.len(), named.len()), (10_000, 5000));
            plain.write_at(9_995, b"12345").unwrap();
            named.write_at(4999, b"x").unwrap();
            plain.atomic::<u64>(8).unwrap().fetch_add(5, SeqCst);
            let again = SharedMemory::open(named.name().unwrap()).unwrap();
            again.atomic::<u8>(7).unwrap().store(1, SeqCst);
            (plain, named)
        };
        let child = Process::builder().start_method(method);
        let child = child.start(work, (plain.clone(), named.clone())).unwrap();
        let (back, named_back) = child.result().expect("no panic");
        assert_eq!(&plain.to_vec().unwrap()[9_994..], b"\x0012345");
        assert_eq!(plain.atomic::<u64>(8).unwrap().load(SeqCst), 5);
        assert_eq!(named.to_vec().unwrap()[7], 1);
        back.write_at(0, b"!").unwrap();
        assert_eq!(plain.to_vec().unwrap()[0], b'!', "the same memory");
        assert!(!named_back.is_owner());
        drop(named_back);
        assert!(exists(&name), "who does not own it does not remove it");
        drop(named);
        assert!(!exists(&name));
    });
}

#[test]
fn places_outside_are_errors() {
    let _guard = guard(30);
    let memory = SharedMemory::new(16).unwrap();
    let kind = |result: bunshin::Result<()>| result.unwrap_err().kind();
    for (offset, len) in [
        (0, 17),
        (16, 1),
        (17, 0),
        (usize::MAX, 1),
        (1, usize::MAX >> 40),
    ] {
        let mut bytes = vec![0; len];
        assert_eq!(
            kind(memory.read_at(offset, &mut bytes)),
            ErrorKind::InvalidInput
        );
        assert_eq!(
            kind(memory.write_at(offset, &bytes)),
            ErrorKind::InvalidInput
        );
    }
    memory.write_at(16, &[]).unwrap();
    assert!(memory.atomic::<u64>(8).is_ok());
    for offset in [1, 4, 12, 16, usize::MAX - 7] {
        let error = memory.atomic::<u64>(offset).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{offset}");
    }
    assert_eq!(
        SharedMemory::new(0).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    for name in ["", "/", ".", "..", "a/b", "a\0b", &"n".repeat(256)] {
        let error = SharedMemory::create(name, 8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
        assert_eq!(
            SharedMemory::open(name).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
    assert_eq!(memory.unlink().unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn memory_that_is_not_there_is_an_error_when_it_is_made() {
    let _guard = guard(60);
    let name = name();
    for len in [1 << 45, usize::MAX] {
        let error = SharedMemory::new(len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        let error = SharedMemory::create(&name, len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(!exists(&name), "no name is left of it");
    }
}

#[test]
fn a_name_is_taken_once_and_found_by_all() {
    let _guard = guard(30);
    let name = name();
    let error = SharedMemory::open(&name).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(2), "{error}");
    let first = SharedMemory::create(&name, 10).unwrap();
    let error = SharedMemory::create(&name, 10).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(17), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    let second = SharedMemory::open(&format!("/{name}")).unwrap();
    second.write_at(0, b"hello").unwrap();
    assert_eq!(&first.to_vec().unwrap()[..5], b"hello");
    // Anybody may unlink it; then the name is free, and both still have the memory.
    second.unlink().unwrap();
    assert_eq!(second.unlink().unwrap_err().raw_os_error(), Some(2));
    let other = SharedMemory::create(&name, 20).unwrap();
    assert_eq!(first.len(), 10);
    drop((first, second));
    assert!(exists(&name), "it is another one's name now");
    let copy = other.clone();
    drop(other);
    assert!(exists(&name), "a clone is the owner too");
    drop(copy);
    assert!(!exists(&name));
}

#[test]
fn a_detached_name_outlives_its_owner() {
    let _guard = guard(60);
    let name = name();
    let make = |name: String| {
        let memory = SharedMemory::create(&name, 3).unwrap();
        memory.write_at(0, b"abc").unwrap();
        memory.detach().unwrap();
        assert!(!memory.is_owner());
    };
    let child = Process::start(make, (name.clone(),)).unwrap();
    child.result().expect("no panic");
    // Time for a helper that has not understood.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(SharedMemory::open(&name).unwrap().to_vec().unwrap(), b"abc");
    SharedMemory::unlink_name(&name).unwrap();
    assert!(!exists(&name));
}

#[test]
fn a_shortened_file_is_an_error() {
    let _guard = guard(30);
    let name = name();
    let memory = SharedMemory::create(&name, 100_000).unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(format!("/dev/shm/{name}"))
        .unwrap();
    file.set_len(5000).unwrap();
    let mut bytes = [0; 100];
    memory.read_at(0, &mut bytes).unwrap();
    for offset in [4950, 50_000] {
        let error = memory.read_at(offset, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let error = memory.write_at(offset, &bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    file.set_len(0).unwrap();
    let error = SharedMemory::open(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn serial_a_killed_owner_leaves_no_name() {
    let _guard = guard(120);
    for round in 0..40u64 {
        let prefix = format!("bunshin-killed-{}-{round}", std::process::id());
        let make = |prefix: String| -> () {
            let mut kept = Vec::new();
            for n in 0.. {
                let memory = SharedMemory::create(&format!("{prefix}-{n}"), 4096 + n).unwrap();
                memory.write_at(0, b"x").unwrap();
                // Some are dropped, some unlinked, some kept; at most ten are there at a time.
                match n % 3 {
                    0 => drop(memory),
                    1 => memory.unlink().unwrap(),
                    _ => kept.push(memory),
                }
                if kept.len() == 10 {
                    kept.clear();
                }
            }
        };
        let child = Process::start(make, (prefix.clone(),)).unwrap();
        if round % 4 != 0 {
            assert!(wait_until(LONG, || !names_with(&prefix).is_empty()));
        }
        std::thread::sleep(Duration::from_micros(round * 137 % 5000));
        support::kill(child.pid(), Signal::KILL);
        child.join().unwrap();
        let is_clean = wait_until(LONG, || names_with(&prefix).is_empty());
        assert!(is_clean, "round {round}: {:?}", names_with(&prefix));
    }
}

#[test]
fn serial_also_when_its_whole_group_is_killed() {
    let _guard = guard(60);
    let name = name();
    let make = |name: String| -> () {
        rustix::process::setpgid(None, None).unwrap();
        let _memory = SharedMemory::create(&name, 10).unwrap();
        std::thread::sleep(LONG);
    };
    let child = Process::start(make, (name.clone(),)).unwrap();
    assert!(wait_until(LONG, || exists(&name)));
    let group = rustix::process::Pid::from_raw(child.pid() as i32).unwrap();
    for signal in [Signal::HUP, Signal::INT, Signal::KILL] {
        let _ = rustix::process::kill_process_group(group, signal);
    }
    child.join().unwrap();
    assert!(wait_until(LONG, || !exists(&name)));
}

#[test]
fn serial_a_killed_helper_is_replaced() {
    let _guard = guard(60);
    let (first, second) = (name(), name());
    let make = |first: String, second: String| -> () {
        let _first = SharedMemory::create(&first, 10).unwrap();
        let own = std::process::id();
        let is_helper = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name == "bunshin-shm\n")
        };
        let find = || support::descendants(own).into_iter().find(is_helper);
        assert!(wait_until(LONG, || find().is_some()), "there is a helper");
        let helper = find().expect("it is there still");
        support::kill(helper, Signal::KILL);
        assert!(wait_until(LONG, || !support::is_running(helper)));
        let _second = SharedMemory::create(&second, 10).unwrap();
        std::thread::sleep(LONG);
    };
    let child = Process::start(make, (first.clone(), second.clone())).unwrap();
    assert!(wait_until(LONG, || exists(&second)));
    assert!(exists(&first));
    support::kill(child.pid(), Signal::KILL);
    child.join().unwrap();
    assert!(wait_until(LONG, || !exists(&first) && !exists(&second)));
}

#[test]
fn a_forked_child_does_not_own() {
    let _guard = guard(60);
    // In a process that has one thread, which may be forked.
    let scenario = || {
        let (name, other) = (name(), name());
        let memory = SharedMemory::create(&name, 10).unwrap();
        match fork().unwrap() {
            Fork::Child => {
                let is_owner = memory.is_owner();
                drop(memory);
                // What it makes itself is its own, and goes with it.
                let own = SharedMemory::create(&other, 10).unwrap();
                let right = !is_owner && exists(&name) && own.is_owner();
                std::mem::forget(own);
                std::process::exit(i32::from(!right));
            }
            Fork::Parent(child) => {
                assert!(child.join().unwrap().success());
                assert!(wait_until(LONG, || !exists(&other)), "its own goes with it");
                assert!(exists(&name), "its parent's does not");
                assert!(memory.is_owner());
            }
        }
        drop(memory);
        assert!(!exists(&name));
    };
    let child = Process::builder().start_method(StartMethod::Spawn);
    child
        .start(scenario, ())
        .unwrap()
        .result()
        .expect("no panic");
}

#[test]
fn python_opens_ours() {
    let _guard = guard(60);
    let name = name();
    let memory = SharedMemory::create(&name, 1000).unwrap();
    memory.write_at(0, b"from rust").unwrap();
    // Until 3.13, with `track=False`, Python would remove the name at its end.
    let program = "
import sys
from multiprocessing import resource_tracker, shared_memory
if sys.version_info >= (3, 13):
    memory = shared_memory.SharedMemory(name=sys.argv[1], track=False)
else:
    memory = shared_memory.SharedMemory(name=sys.argv[1])
    resource_tracker.unregister(memory._name, 'shared_memory')
print(memory.size, bytes(memory.buf[:9]).decode())
memory.buf[990:1000] = b'frompython'
memory.close()
";
    assert_eq!(python(program, &[&name]), "1000 from rust\n");
    assert_eq!(&memory.to_vec().unwrap()[990..], b"frompython");
    assert!(exists(&name));
}

#[test]
fn we_open_pythons() {
    let _guard = guard(60);
    let name = name();
    let program = "
import sys
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(name=sys.argv[1], create=True, size=5000)
memory.buf[4990:5000] = b'frompython'
resource_tracker.unregister(memory._name, 'shared_memory')
";
    python(program, &[&name]);
    let memory = SharedMemory::open(&name).unwrap();
    assert!(!memory.is_owner());
    assert_eq!(&memory.to_vec().unwrap()[4990..5000], b"frompython");
    memory.write_at(0, b"ok").unwrap();
    drop(memory);
    assert!(exists(&name), "attaching never owns");
    let program = "
import sys
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(name=sys.argv[1])
print(bytes(memory.buf[:2]).decode())
memory.close()
memory.unlink()
";
    assert_eq!(python(program, &[&name]), "ok\n");
}

#[test]
fn a_descriptor_of_something_else_is_refused() {
    let _guard = guard(60);
    // A list is memory too: the other way round it need not be.
    let (here, there) = bunshin::pipe::<SharedMemory>().unwrap();
    let child = Process::builder()
        .start_method(StartMethod::Spawn)
        .start(
            |end: bunshin::Connection<SharedMemory>| {
                end.send(SharedMemory::new(100).unwrap()).unwrap();
                end.recv().unwrap().len()
            },
            (there,),
        )
        .unwrap();
    let memory = here.recv().unwrap();
    assert_eq!(memory.len(), 100);
    here.send(memory).unwrap();
    assert_eq!(child.result().unwrap(), 100);
}

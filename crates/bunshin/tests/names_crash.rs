//! The helper process that removes names, killed.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use bunshin::{Process, SharedMemory};
use rustix::process::Signal;
use support::wait_until;

const LONG: Duration = Duration::from_secs(20);

/// The helpers of a process, those included that nobody has collected.
fn helpers(of: u32) -> Vec<u32> {
    let is_helper = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "bunshin-shm\n")
    };
    let all = support::descendants(of).into_iter();
    all.filter(is_helper).collect()
}

fn kill_helper() -> u32 {
    let own = std::process::id();
    assert!(wait_until(LONG, || helpers(own).len() == 1));
    let helper = helpers(own)[0];
    support::kill(helper, Signal::KILL);
    assert!(wait_until(LONG, || !support::is_running(helper)));
    helper
}

#[test]
fn a_killed_helper_is_collected_and_replaced_at_the_next_start() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let name = format!("bunshin-names-crash-{}", std::process::id());
    let path = format!("/dev/shm/{name}");
    let make = |name: String| -> () {
        let _memory = SharedMemory::create(&name, 10).unwrap();
        let killed = kill_helper();
        Process::start(|| (), ()).unwrap().join().unwrap();
        let own = std::process::id();
        assert!(!helpers(own).contains(&killed), "it is a zombie still");
        assert_eq!(helpers(own).len(), 1, "nobody would remove the name");
        support::kill(own, Signal::KILL);
    };
    let child = Process::start(make, (name,)).unwrap();
    let status = child.join().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
    assert!(wait_until(LONG, || !Path::new(&path).exists()));
}

#[test]
fn a_killed_helper_is_collected_when_the_last_name_goes() {
    let _guard = support::guard_after(60, support::start_each_way_once);
    let scenario = |name: String| {
        let memory = SharedMemory::create(&name, 10).unwrap();
        let killed = kill_helper();
        drop(memory);
        helpers(std::process::id()).contains(&killed)
    };
    let name = format!("bunshin-names-crash-last-{}", std::process::id());
    let is_there = Process::start(scenario, (name,)).unwrap().result().unwrap();
    assert!(!is_there, "it is a zombie still");
}

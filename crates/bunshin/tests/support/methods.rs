//! Scenarios under each start method, each in a child of its own.

use std::time::Duration;

use bunshin::{Process, StartMethod};

/// Runs a scenario under each start method, in a child that has one thread. Fails as it does,
/// if it leaves something behind, or if it has not ended in time.
pub(crate) fn each_method<F: Fn(StartMethod) + Copy + 'static>(scenario: F) {
    let _guard = super::guard(300);
    for method in super::start_methods() {
        let run = move |method: String| {
            start_each_way_once();
            let before = holdings();
            scenario(method.parse().expect("it is one"));
            let is_back = || (0..3).all(|i| holdings()[i] <= before[i]);
            let is_clean = super::wait_until(Duration::from_secs(2), is_back);
            assert!(is_clean, "left behind: {:?}, before {before:?}", holdings());
        };
        let child = Process::builder()
            .start_method(StartMethod::Spawn)
            .start(run, (method.to_string(),))
            .expect("a child can be started");
        let ended = child.join_timeout(Duration::from_secs(60));
        if ended.expect("it can be joined").is_none() {
            super::kill_tree(child.pid());
            panic!("under {method}: not ended after 60 s");
        }
        if let Err(error) = child.result() {
            panic!("under {method}: {error}");
        }
    }
}

/// Makes what a process makes once and keeps, such as the forkserver.
pub(crate) fn start_each_way_once() {
    for method in StartMethod::ALL {
        // Refused to those that have threads, which make nothing then.
        if let Ok(child) = Process::builder().start_method(method).start(|| (), ()) {
            child.join().expect("it ends");
        }
    }
    let name = format!("bunshin-warm-{}", std::process::id());
    drop(bunshin::SharedMemory::create(&name, 1).expect("a named memory"));
}

/// Descriptors, mappings of shared memory, and processes below this one.
fn holdings() -> [usize; 3] {
    let own = std::process::id();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let mapped = maps.lines().filter(|line| line.contains("memfd:bunshin"));
    let descriptors = super::open_descriptors(own);
    [descriptors, mapped.count(), super::n_below(own)]
}

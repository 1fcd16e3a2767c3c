//! `Scope::par_map`: closures that borrow, in forks; and forks that are killed.

mod support;

use std::time::Duration;

use bunshin::{ErrorKind, Process, StartMethod, TaskError};
use rustix::process::Signal;

/// Runs a scenario in a child that has one thread, which may fork, and checks what it leaves.
fn alone(scenario: impl Fn() + Copy + 'static) {
    let _guard = support::guard_after(120, support::start_each_way_once);
    let run = move || {
        let before = support::open_descriptors(std::process::id());
        scenario();
        let own = std::process::id();
        assert_eq!(support::open_descriptors(own), before);
        assert!(support::descendants(own).is_empty());
    };
    let child = Process::builder()
        .start_method(StartMethod::Spawn)
        .start(run, ());
    child.expect("a child").result().expect("no panic");
}

fn die() {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, Signal::KILL).expect("it may");
}

#[test]
fn closures_borrow_and_results_are_in_order() {
    alone(|| {
        let texts: Vec<String> = (0..10_000).map(|n| format!("text {n}")).collect();
        let suffix = String::from("!");
        for chunk in [1, 7, 1000] {
            let loud = bunshin::scope(|scope| {
                let work = |text: &String| text.clone() + &suffix;
                scope.par().workers(3).chunk_size(chunk).map(&texts, work)
            });
            let loud = loud.expect("nobody dies");
            assert!(
                loud.into_iter()
                    .eq(texts.iter().map(|text| text.clone() + "!"))
            );
        }
        let lengths = bunshin::scope(|scope| scope.par_map(&texts[..3], |text| text.len()));
        assert_eq!(lengths.expect("nobody dies"), [6, 6, 6]);
        let none: Vec<u8> =
            bunshin::scope(|scope| scope.par_map(&[0u8; 0], |n| *n)).expect("nothing");
        assert!(none.is_empty());
        // What they change is their own.
        let cell = std::cell::Cell::new(0);
        bunshin::scope(|scope| scope.par_map(&[1, 2], |n| cell.set(*n))).expect("nobody dies");
        assert_eq!(cell.get(), 0);
    });
}

#[test]
fn a_process_that_dies_costs_its_item() {
    alone(|| {
        let numbers: Vec<u64> = (0..400).collect();
        for chunk in [1, 50] {
            let results = bunshin::scope(|scope| {
                scope
                    .par()
                    .workers(3)
                    .chunk_size(chunk)
                    .map_each(&numbers, |n| {
                        if n % 40 == 11 {
                            die();
                        }
                        n * 2
                    })
            });
            for (n, result) in (0..).zip(results) {
                match result {
                    Ok(result) => assert_eq!(result, n * 2),
                    Err(TaskError::Lost(lost)) => {
                        assert_eq!((n % 40, lost.task()), (11, Some(n as usize)));
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
    });
}

#[test]
fn panics_and_limits_are_the_items_own() {
    alone(|| {
        let results = bunshin::scope(|scope| {
            scope
                .par()
                .workers(2)
                .timeout(Duration::from_millis(150))
                .map_each(&[0, 1, 2, 3], |n| match n {
                    1 => panic!("no ones"),
                    2 => loop {
                        std::thread::sleep(Duration::from_secs(60));
                    },
                    n => *n,
                })
        });
        assert!(matches!(results[0], Ok(0)) && matches!(results[3], Ok(3)));
        assert!(matches!(&results[1], Err(TaskError::Panicked(p)) if p.message() == "no ones"));
        assert!(matches!(&results[2], Err(error) if error.is_timeout()));
    });
}

#[test]
fn killed_from_outside_at_random_moments() {
    alone(|| {
        let own = std::process::id();
        let killer = Process::builder()
            .start_method(StartMethod::Spawn)
            .daemon(true);
        let kill = |parent: u32| {
            let mut kills = 0u64;
            for round in 0..120u64 {
                std::thread::sleep(Duration::from_micros(round * 997 % 7000));
                let workers: Vec<u32> = support::descendants(parent)
                    .into_iter()
                    .filter(|pid| {
                        support::ProcessState::of(*pid)
                            .is_some_and(|p| p.comm.starts_with("ParMap"))
                    })
                    .collect();
                if let Some(pid) = workers.get(round as usize % workers.len().max(1)) {
                    kills += u64::from(support::kill(*pid, Signal::KILL));
                }
            }
            kills
        };
        let killer = killer.start(kill, (own,)).expect("a child");
        let numbers: Vec<u64> = (0..3000).collect();
        let mut lost = 0u64;
        while killer.is_alive() {
            let results = bunshin::scope(|scope| {
                scope.par().workers(3).map_each(&numbers, |n| {
                    std::thread::sleep(Duration::from_micros(20));
                    n * 2
                })
            });
            for (n, result) in (0..).zip(results) {
                match result {
                    Ok(result) => assert_eq!(result, n * 2),
                    Err(TaskError::Lost(_)) => lost += 1,
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        let kills = killer.result().expect("no panic");
        assert!(lost <= kills && kills > 10, "{lost} lost by {kills} kills");
    });
}

#[test]
fn a_process_with_threads_is_not_forked() {
    let _guard = support::guard(60);
    let results = bunshin::scope(|scope| scope.par_map_each(&[1, 2], |n| *n));
    assert_eq!(results.len(), 2);
    for result in results {
        assert!(matches!(result, Err(TaskError::Pool(e)) if e.kind() == ErrorKind::Threads));
    }
}

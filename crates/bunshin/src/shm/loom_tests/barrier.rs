//! The barrier: all pass or none waits for ever, whoever dies.

use loom::thread;

use super::super::barrier::{SharedBarrier, Stopped};
use super::super::system;
use super::explore;

fn two_parties() -> SharedBarrier {
    let barrier = SharedBarrier::create(2).unwrap();
    // Makes all places, before a thread can be early.
    barrier.thread_ended();
    barrier
}

fn pass(barrier: &SharedBarrier) -> Result<u32, Stopped> {
    let party = barrier.arrive(false, None)?;
    if party.is_last() {
        system::call();
        party.let_all_go()?;
    } else {
        party.wait(None)?;
    }
    Ok(party.index)
}

/// A party that is killed at its call number `kill_at`.
fn party(
    barrier: &SharedBarrier,
    tid: u32,
    kill_at: Option<u32>,
    n_rounds: u32,
) -> thread::JoinHandle<Option<Vec<Result<u32, Stopped>>>> {
    let barrier = barrier.clone();
    thread::spawn(move || {
        let work = || (0..n_rounds).map(|_| pass(&barrier)).collect();
        let done = system::run(tid, kill_at, work);
        if done.is_none() {
            barrier.thread_ended();
            system::seconds_pass();
        }
        done
    })
}

#[test]
fn loom_barrier_lets_all_pass() {
    explore(2, || {
        let barrier = two_parties();
        let other = party(&barrier, 1, None, 1);
        let own = system::run(2, None, || pass(&barrier).unwrap()).unwrap();
        let other = other.join().unwrap().unwrap().pop().unwrap().unwrap();
        assert_eq!(own + other, 1);
        assert_eq!(barrier.n_waiting(), 0);
    });
}

#[test]
fn loom_barrier_can_be_used_again() {
    explore(1, || {
        let barrier = two_parties();
        let other = party(&barrier, 1, None, 2);
        system::run(2, None, || {
            (0..2).for_each(|_| drop(pass(&barrier).unwrap()))
        });
        assert!(other.join().unwrap().unwrap().iter().all(Result::is_ok));
    });
}

#[test]
fn loom_barrier_does_not_wait_for_the_dead() {
    for kill_at in 0..26 {
        explore(1, move || {
            let barrier = two_parties();
            let dying = party(&barrier, 1, Some(kill_at), 1);
            let own = barrier.clone();
            let living = party(&own, 2, None, 1);
            if dying.join().unwrap().is_none() && !barrier.is_broken() {
                // It may have died before it arrived: then nobody else comes.
                system::run(3, None, || barrier.abort().unwrap());
            }
            assert!(living.join().unwrap().is_some());
            system::run(3, None, || barrier.reset().unwrap());
            assert_eq!(barrier.n_waiting(), 0);
        });
    }
}

#[test]
fn loom_barrier_is_broken_for_who_waits() {
    explore(2, || {
        let barrier = two_parties();
        let waiting = party(&barrier, 1, None, 1);
        system::run(2, None, || barrier.abort().unwrap());
        let told = waiting.join().unwrap().unwrap().pop().unwrap();
        assert!(matches!(told, Err(Stopped::Broken)));
    });
}

//! Barriers: all pass or none, actions, and parties that die, panic or run out of time.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{Barrier, BarrierError, ErrorKind, RawArray, TaskError};

use super::{BOARD, COUNT, INSIDE, LONG, QUIT, counts_to, start};
use crate::support;

#[test]
fn all_pass_together_again_and_again() {
    fn rounds(barrier: Barrier, board: RawArray<u64>) -> usize {
        let mut first = 0;
        for round in 1..=200u64 {
            board.fetch_add(COUNT, 1, SeqCst);
            let index = barrier.wait().expect("nobody dies");
            assert!(
                board.load(COUNT, SeqCst) >= 3 * round,
                "somebody is missing"
            );
            first += usize::from(index == 0);
        }
        first
    }
    support::each_method(|method| {
        let (barrier, board) = (Barrier::new(3).unwrap(), RawArray::new(BOARD).unwrap());
        let enter = |_| start(method, rounds, (barrier.clone(), board.clone()));
        let parties: Vec<_> = (0..3).map(enter).collect();
        let firsts = parties.into_iter().map(|party| party.result().unwrap());
        assert_eq!(firsts.sum::<usize>(), 200, "one in each round is number 0");
        assert_eq!((barrier.n_waiting(), barrier.is_broken()), (0, false));
    });
}

/// More come than pass together.
#[test]
fn whoever_is_too_many_passes_in_the_next_round() {
    let _guard = support::guard(60);
    let (barrier, turns) = (Barrier::new(4).unwrap(), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                // All turns together fill whole rounds.
                while turns.fetch_add(1, SeqCst) < 4 * 150 {
                    barrier.wait().unwrap();
                }
            });
        }
    });
    assert_eq!(barrier.n_waiting(), 0);
}

#[test]
fn one_acts_before_all_go() {
    static ACTED: AtomicU64 = AtomicU64::new(0);
    fn pass(barrier: Barrier) -> u64 {
        barrier.wait().expect("nobody dies");
        ACTED.load(SeqCst)
    }
    support::each_method(|method| {
        let before = ACTED.load(SeqCst);
        let act = || {
            ACTED.fetch_add(1, SeqCst);
        };
        let barrier = Barrier::with_action(2, act).unwrap();
        let child = start(method, pass, (barrier.clone(),));
        let own = pass(barrier) - before;
        let other = child.result().unwrap();
        // Each has memory of its own, and exactly one has acted.
        assert_eq!(own + other - if other >= before { before } else { 0 }, 1);
    });
}

#[test]
fn a_panicking_action_breaks_the_barrier() {
    fn pass(barrier: Barrier) -> bool {
        matches!(barrier.wait(), Err(BarrierError::Broken))
    }
    support::each_method(|method| {
        let barrier = Barrier::with_action(2, || panic!("in the action")).unwrap();
        let parties = [(); 2].map(|()| start(method, pass, (barrier.clone(),)));
        let ends = parties.map(|party| party.result());
        let panicked = |end: &&Result<bool, TaskError>| matches!(end, Err(TaskError::Panicked(_)));
        assert_eq!(ends.iter().filter(panicked).count(), 1, "{ends:?}");
        assert_eq!(
            ends.iter().filter(|end| matches!(end, Ok(true))).count(),
            1,
            "{ends:?}"
        );
        assert!(barrier.is_broken());
        barrier.reset().unwrap();
        assert!(!barrier.is_broken());
    });
}

#[test]
fn a_killed_party_breaks_the_barrier_for_the_others() {
    fn wait(barrier: Barrier, board: RawArray<u64>) -> bool {
        board.fetch_add(COUNT, 1, SeqCst);
        matches!(barrier.wait(), Err(BarrierError::Broken))
    }
    support::each_method(|method| {
        let (barrier, board) = (Barrier::new(4).unwrap(), RawArray::new(BOARD).unwrap());
        for round in 1..=3 {
            let enter = |_| start(method, wait, (barrier.clone(), board.clone()));
            let mut parties: Vec<_> = (0..3).map(enter).collect();
            counts_to(&board, COUNT, 3 * round);
            assert!(support::wait_until(LONG, || barrier.n_waiting() == 3));
            let victim = parties.remove(round as usize - 1);
            victim.kill().unwrap();
            let before = Instant::now();
            for party in parties {
                assert!(party.result().unwrap(), "it is told");
            }
            assert!(before.elapsed() < LONG);
            victim.join().unwrap();
            assert!(barrier.is_broken());
            assert!(matches!(barrier.wait(), Err(BarrierError::Broken)));
            barrier.reset().unwrap();
        }
    });
}

#[test]
fn time_limits_abort_and_reset() {
    fn wait(barrier: Barrier, board: RawArray<u64>) -> String {
        board.fetch_add(COUNT, 1, SeqCst);
        barrier.wait().expect_err("nobody else comes").to_string()
    }
    support::each_method(|method| {
        let (barrier, board) = (Barrier::new(3).unwrap(), RawArray::new(BOARD).unwrap());
        for way in 0..3 {
            let party = start(method, wait, (barrier.clone(), board.clone()));
            assert!(support::wait_until(LONG, || barrier.n_waiting() == 1));
            assert!(matches!(barrier.try_wait(), Err(BarrierError::Unavailable)));
            assert_eq!((barrier.n_waiting(), barrier.is_broken()), (1, false));
            match way {
                0 => {
                    let short = Duration::from_millis(20);
                    let late = barrier.wait_timeout(short).unwrap_err();
                    assert!(matches!(late, BarrierError::TimedOut));
                    assert_eq!(bunshin::Error::from(late).kind(), ErrorKind::TimedOut);
                }
                1 => barrier.abort().unwrap(),
                _ => barrier.reset().unwrap(),
            }
            assert_eq!(party.result().unwrap(), "the barrier is broken");
            assert_eq!(barrier.is_broken(), way < 2);
            let broken = bunshin::Error::from(BarrierError::Broken);
            assert_eq!(broken.kind(), ErrorKind::Broken);
            barrier.reset().unwrap();
        }
        for wrong in [0, 65537] {
            assert_eq!(
                Barrier::new(wrong).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
    });
}

#[test]
fn kills_around_a_barrier_never_leave_anybody_waiting() {
    fn rounds(barrier: Barrier, board: RawArray<u64>) {
        while board.load(QUIT, SeqCst) == 0 {
            match barrier.wait_timeout(LONG) {
                Ok(0) => drop(board.fetch_add(INSIDE, 1, SeqCst)),
                Ok(_) => {}
                Err(BarrierError::Broken) => barrier.reset().expect("it may"),
                Err(other) => panic!("{other}"),
            }
        }
        barrier.abort().expect("it may");
    }
    support::each_method(|method| {
        let (barrier, board) = (
            Barrier::new(2).unwrap(),
            RawArray::<u64>::new(BOARD).unwrap(),
        );
        let enter = || start(method, rounds, (barrier.clone(), board.clone()));
        let mut parties: Vec<_> = (0..2).map(|_| enter()).collect();
        for round in 0..8u64 {
            thread::sleep(Duration::from_micros(997 * (round % 5)));
            let victim = round as usize % 2;
            parties[victim].kill().unwrap();
            parties[victim].join().unwrap();
            parties[victim] = enter();
            let passed = board.get(INSIDE);
            assert!(
                support::wait_until(LONG, || board.get(INSIDE) > passed + 3),
                "stuck"
            );
        }
        board.store(QUIT, 1, SeqCst);
        let is_over = || {
            parties.iter().all(|party| {
                let _ = barrier.abort();
                party
                    .join_timeout(Duration::from_millis(50))
                    .unwrap()
                    .is_some()
            })
        };
        assert!(support::wait_until(LONG, is_over));
        for party in parties {
            party.join().unwrap();
        }
    });
}

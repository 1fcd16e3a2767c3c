//! One end that several processes receive from, each of which watches its descriptor.

use bunshin::{Lock, Receiver, Semaphore, channel, scope};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::guard;
use super::support::in_single_thread;

fn is_readable<T>(receiver: &Receiver<T>, limit: Option<&Timespec>) -> bool {
    let fd = receiver.fileno().unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], limit).unwrap() > 0
}

/// Takes numbers, with nobody else between the look and the taking; ends at a zero.
fn take_in_turn(receiver: &Receiver<u64>, turn: &Lock, taken: &Semaphore) -> u64 {
    let mut sum = 0;
    loop {
        is_readable(receiver, None);
        let turn = turn.lock().unwrap();
        if !is_readable(receiver, Some(&Timespec::default())) {
            continue;
        }
        // Does not wait: it was said to be there. Whoever waits here keeps the others out.
        let number = receiver.recv().unwrap();
        drop(turn);
        if number == 0 {
            return sum;
        }
        sum += number;
        taken.release().unwrap();
    }
}

#[test]
fn what_one_takes_is_told_to_no_other() {
    let _guard = guard(60);
    in_single_thread(|| [0, 3].into_iter().for_each(check));
}

fn check(before: u64) {
    let (sender, receiver) = channel::<u64>().unwrap();
    let (turn, taken) = (Lock::new().unwrap(), Semaphore::new(0).unwrap());
    for number in 1..=before {
        sender.send(number).unwrap();
    }
    scope(|scope| {
        let take = || take_in_turn(&receiver, &turn, &taken);
        let takers = [(); 3].map(|()| scope.spawn(take).unwrap());
        let mut sent = before;
        for burst in 0..300 {
            for _ in 0..burst % 4 {
                sent += 1;
                sender.send(sent).unwrap();
            }
            let come = if burst == 0 { before } else { burst % 4 };
            for _ in 0..come {
                taken.acquire().unwrap().forget();
            }
            drop(turn.lock().unwrap());
        }
        for _ in &takers {
            sender.send(0).unwrap();
        }
        let sum: u64 = takers.map(|taker| taker.result().unwrap()).iter().sum();
        assert_eq!(sum, (1..=sent).sum::<u64>());
    });
}

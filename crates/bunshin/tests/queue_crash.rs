//! Faults: queues whose producers and consumers are killed or stopped, at random moments,
//! under every start method.

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{
    Buffer, JoinError, JoinableQueue, Lock, Process, Queue, RawArray, RecvTimeoutError, wait,
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use support::{each_method, kill, start_daemon as start};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(30);

/// A number that looks random, from one that counts.
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    n ^ (n >> 29)
}

fn end<R>(child: Process<R>) {
    kill(child.pid(), Signal::KILL);
    child.join().expect("it ends");
}

/// An item whose parts all follow from its numbers: of every size and form.
#[derive(Serialize, Deserialize)]
struct Item {
    producer: u64,
    number: u64,
    bytes: Vec<u8>,
    beside: Buffer<u8>,
    lock: Option<Lock>,
}

impl Item {
    fn new(producer: u64, number: u64) -> Self {
        let (bytes, beside) = match number % 13 {
            3 => (16_000, 0),
            5 => (60_000, 0),
            7 => (300_000, 0),
            9 => (0, 5_000),
            11 => (0, if number % 7 == 0 { 1_100_000 } else { 0 }),
            rest => (rest as usize * 20, 0),
        };
        Self {
            producer,
            number,
            bytes: vec![number as u8; bytes],
            beside: vec![number as u8; beside].into(),
            lock: (number % 5 == 0).then(|| Lock::new().expect("a lock")),
        }
    }

    fn check(&self) {
        let right = Self::new(self.producer, self.number);
        assert!(self.bytes == right.bytes, "item {} is wrong", self.number);
        assert!(
            self.beside == *right.beside,
            "item {} is wrong",
            self.number
        );
        assert_eq!(self.lock.is_some(), right.lock.is_some());
        if let Some(lock) = &self.lock {
            assert!(lock.try_lock().is_ok());
        }
    }
}

fn produce(queue: Queue<Item>, producer: u64, sent: RawArray<u64>) {
    for number in 0.. {
        queue.send(Item::new(producer, number)).expect("it is open");
        sent.store(producer as usize, number + 1, SeqCst);
    }
}

#[test]
fn a_killed_producers_item_never_was_or_is_there() {
    each_method(|method| {
        for round in 0..30u64 {
            let queue = match round % 3 {
                0 => Queue::new().unwrap(),
                1 => Queue::bounded(1).unwrap(),
                _ => Queue::bounded(20).unwrap(),
            };
            if round % 4 == 0 {
                queue.fileno().unwrap();
            }
            let sent = RawArray::<u64>::new(4).unwrap();
            let run = |id: u64| start(method, produce, (queue.clone(), id, sent.clone()));
            let mut next = [0u64; 4];
            let mut take = |timeout: Duration| match queue.recv_timeout(timeout) {
                Ok(item) => {
                    item.check();
                    assert_eq!(item.number, next[item.producer as usize], "round {round}");
                    next[item.producer as usize] += 1;
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(error) => panic!("round {round}: {error}"),
            };
            // Two at a time; each is killed in its turn.
            let mut running = vec![run(0), run(1)];
            for id in 2..6 {
                let deadline = Instant::now() + Duration::from_micros(mixed(round * 9 + id) % 5000);
                while Instant::now() < deadline {
                    take(Duration::from_micros(100));
                }
                end(running.remove(0));
                if id < 4 {
                    running.push(run(id));
                }
            }
            while take(Duration::ZERO) {}
            assert!(queue.is_empty());
            for (id, next) in next.into_iter().enumerate() {
                let sent = sent.load(id, SeqCst);
                assert!(
                    (sent..=sent + 1).contains(&next),
                    "round {round}: {next} of {sent} items of producer {id} came"
                );
            }
            // And it works as before.
            queue.send(Item::new(0, 7)).unwrap();
            assert_eq!(queue.recv_timeout(LONG).unwrap().number, 7);
        }
    });
}

fn consume(queue: Queue<Item>, seen: RawArray<u32>) {
    for item in &queue {
        let item = item.expect("it can be taken");
        seen.fetch_add(item.number as usize, 1, SeqCst);
        item.check();
    }
}

#[test]
fn a_killed_consumer_loses_what_it_had_taken_and_nothing_else() {
    const ITEMS: u64 = 400;
    each_method(|method| {
        for round in 0..20u64 {
            let queue = match round % 2 {
                0 => Queue::new().unwrap(),
                _ => Queue::bounded(10).unwrap(),
            };
            let seen = RawArray::<u32>::new(ITEMS as usize).unwrap();
            let run = || start(method, consume, (queue.clone(), seen.clone()));
            let mut running = vec![run(), run(), run()];
            let mut kills = 0;
            let mut kill_at = Instant::now();
            for number in 0..ITEMS {
                queue.send(Item::new(0, number)).unwrap();
                if Instant::now() > kill_at {
                    end(running.remove(0));
                    running.push(run());
                    kills += 1;
                    kill_at = Instant::now() + Duration::from_micros(mixed(round + kills) % 3000);
                }
            }
            queue.close().unwrap();
            for child in running {
                child.result().unwrap();
            }
            assert!(queue.is_empty());
            let counts: Vec<u32> = (0..ITEMS as usize).map(|n| seen.load(n, SeqCst)).collect();
            assert!(counts.iter().all(|count| *count <= 1), "an item came twice");
            let lost = counts.iter().filter(|count| **count == 0).count() as u64;
            assert!(
                lost <= kills,
                "round {round}: {lost} items lost with {kills} processes"
            );
        }
    });
}

/// Whoever is killed asleep, or while it wakes up, takes no wake-up along.
#[test]
fn a_killed_sleeper_does_not_keep_the_others_asleep() {
    each_method(|method| {
        fn answer(questions: Queue<u64>, answers: Queue<u64>) {
            for question in &questions {
                answers.send(question.unwrap()).unwrap();
            }
        }
        for round in 0..30u64 {
            let (questions, answers) = (Queue::new().unwrap(), Queue::bounded(2).unwrap());
            let run = || start(method, answer, (questions.clone(), answers.clone()));
            let mut running: Vec<_> = (0..5).map(|_| run()).collect();
            let mut asked = 0u64;
            let mut lost = 0;
            for n in 0..4 {
                for _ in 0..4 {
                    questions.send(asked).unwrap();
                    asked += 1;
                }
                // While they wake, take, and wait to answer.
                let pause = mixed(round * 5 + n) % 300;
                let until = Instant::now() + Duration::from_micros(pause);
                while Instant::now() < until {}
                end(running.remove(0));
                lost += 1;
            }
            // One is left: it answers all that is there, without being asked again.
            let mut answered = 0;
            while answered + lost < asked {
                match answers.recv_timeout(LONG) {
                    Ok(_) => answered += 1,
                    Err(error) => panic!("round {round}: {answered} of {asked}: {error}"),
                }
            }
            questions.close().unwrap();
            while running[0]
                .join_timeout(Duration::from_millis(1))
                .unwrap()
                .is_none()
            {
                let _ = answers.try_recv();
            }
        }
    });
}

/// The same for those who wait by descriptor.
#[test]
fn a_killed_consumer_leaves_a_bell_that_is_right() {
    each_method(|method| {
        fn consume(queue: Queue<u64>, taken: RawArray<u64>) {
            loop {
                wait(&[&queue], None).unwrap();
                while queue.try_recv().is_ok() {
                    taken.fetch_add(0, 1, SeqCst);
                }
            }
        }
        fn produce(queue: Queue<u64>) {
            for n in 0.. {
                queue.send(n).unwrap();
                thread::sleep(Duration::from_micros(n % 50));
            }
        }
        for round in 0..20u64 {
            let queue = Queue::new().unwrap();
            let taken = RawArray::<u64>::new(1).unwrap();
            let consumers =
                [(); 2].map(|()| start(method, consume, (queue.clone(), taken.clone())));
            let producers = [(); 2].map(|()| start(method, produce, (queue.clone(),)));
            thread::sleep(Duration::from_micros(2000 + mixed(round) % 3000));
            consumers.into_iter().for_each(end);
            thread::sleep(Duration::from_micros(mixed(round + 7) % 500));
            producers.into_iter().for_each(end);
            // What is left is announced; after it, nothing is.
            while !queue.is_empty() {
                assert_eq!(wait(&[&queue], Some(LONG)).unwrap(), [0], "round {round}");
                queue.try_recv().unwrap();
            }
            let nothing = wait(&[&queue], Some(Duration::from_millis(2))).unwrap();
            assert!(nothing.is_empty(), "round {round}");
            queue.send(1).unwrap();
            assert_eq!(wait(&[&queue], Some(LONG)).unwrap(), [0], "round {round}");
        }
    });
}

#[test]
fn joining_ends_although_consumers_are_killed() {
    each_method(|method| {
        fn work(tasks: JoinableQueue<u64>, done: RawArray<u64>) {
            for _ in tasks.iter() {
                done.fetch_add(0, 1, SeqCst);
                tasks.task_done().unwrap();
            }
        }
        let tasks = JoinableQueue::new().unwrap();
        let done = RawArray::<u64>::new(1).unwrap();
        let mut sent = 0;
        let mut lost_in_all = 0;
        let mut kills = 0;
        for round in 0..25u64 {
            let run = || start(method, work, (tasks.clone(), done.clone()));
            let mut running = vec![run(), run()];
            for n in 0..2000 {
                tasks.send(n).unwrap();
                sent += 1;
                if n % 700 == mixed(round) % 700 {
                    end(running.remove(0));
                    running.push(run());
                    kills += 1;
                }
            }
            match tasks.join_timeout(LONG) {
                Ok(()) => {}
                Err(JoinError::Lost(lost)) => lost_in_all += lost,
                Err(error) => panic!("round {round}: {error}"),
            }
            assert_eq!(tasks.unfinished(), 0);
            running.into_iter().for_each(end);
        }
        assert!(lost_in_all <= kills, "{lost_in_all} lost with {kills}");
        let done = done.load(0, SeqCst);
        // Killed between the two, an item is done and lost.
        assert!(
            (sent - lost_in_all..=sent).contains(&done),
            "{done} of {sent}"
        );
    });
}

/// A process that is stopped while it waits holds up nobody for longer than a timed wait says,
/// and not at all once there is a second item.
#[test]
fn a_stopped_process_holds_up_no_timed_wait() {
    each_method(|method| {
        fn spin(queue: Queue<u64>) {
            loop {
                queue.send(1).unwrap();
                queue.recv().unwrap();
            }
        }
        for round in 0..20u64 {
            let queue = Queue::new().unwrap();
            let child = start(method, spin, (queue.clone(),));
            thread::sleep(Duration::from_micros(500 + mixed(round) % 2000));
            kill(child.pid(), Signal::STOP);
            let short = Duration::from_millis(5);
            let begun = Instant::now();
            // Whatever it was in: these end.
            let _ = queue.send_timeout(2, short);
            let _ = queue.recv_timeout(short);
            let _ = queue.try_send(3);
            let _ = queue.try_recv();
            assert!(begun.elapsed() < LONG);
            kill(child.pid(), Signal::CONT);
            end(child);
            // All is as it was.
            queue.send(4).unwrap();
            while queue.recv_timeout(LONG).unwrap() != 4 {}
        }
    });
}

//! Waiting in `async` code: processes, pipes, sockets, queues, under each start method.
#![cfg(feature = "tokio")]

mod support;

use std::future::Future;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use bunshin::tokio::{Connection, Process, Queue, Receiver, Sender, StreamConnection};
use bunshin::{ErrorKind, RecvError, SendError, StartMethod, TaskError};
use rustix::process::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(30);

/// A runtime of this thread alone: under it, `fork` works as well.
fn here<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(work)
}

fn many() -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build();
    runtime.expect("a runtime can be made")
}

fn start<F, A>(method: StartMethod, target: F, args: A) -> Process<F::Output>
where
    F: bunshin::Target<A>,
    F::Output: Serialize + DeserializeOwned,
    A: Serialize + DeserializeOwned,
{
    let child = bunshin::Process::builder()
        .start_method(method)
        .start(target, args);
    Process::new(child.expect("a child can be started")).expect("it can be watched")
}

/// Whether this future is not done now.
async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    timeout(Duration::from_millis(30), future).await.is_err()
}

/// Methods that a runtime with several threads allows.
fn spawning() -> [StartMethod; 2] {
    [StartMethod::Spawn, StartMethod::Forkserver]
}

// -- processes

#[test]
fn the_end_of_a_process_and_its_result_are_awaited() {
    support::each_method(|method| {
        here(async {
            let child = start(method, thread::park, ());
            {
                let mut join = Box::pin(child.join());
                assert!(is_pending(&mut join).await);
                child.get_ref().kill().expect("it may");
                let status = timeout(LONG, join).await.expect("in time");
                assert_eq!(status.expect("it ends").signal(), Some(9));
            }
            assert_eq!(child.join().await.expect("again").signal(), Some(9));

            let child = start(method, |n: u64| n + 1, (41,));
            let sum = timeout(LONG, child.result()).await.expect("in time");
            assert_eq!(sum.expect("it works"), 42);
            let child = start(method, || -> u8 { panic!("out of luck") }, ());
            let error = child.result().await.expect_err("it panics");
            assert!(matches!(error, TaskError::Panicked(_)), "{error}");
            let child = start(method, || -> u8 { std::process::exit(3) }, ());
            let error = child.result().await.expect_err("it exits");
            assert!(matches!(error, TaskError::Lost(_)), "{error}");
        });
    });
}

#[test]
fn a_result_that_does_not_come_whole_is_awaited() {
    support::each_method(|method| {
        for len in [1 << 12, 1 << 16, 1 << 20, 9 << 20] {
            // Each has its runtime, as such a result is read by a thread of it: with that there,
            // nothing could be forked.
            let result = here(async {
                let child = start(method, |len: usize| vec![7u8; len], (len,));
                timeout(LONG, child.result()).await.expect("in time")
            });
            let bytes = result.expect("it works");
            assert!(bytes.len() == len && bytes.iter().all(|byte| *byte == 7));
        }
    });
}

#[test]
fn a_killed_process_ends_the_wait_for_its_result() {
    support::each_method(|method| {
        for round in 0..20 {
            let len = (round % 4) * 20_000;
            here(async {
                let child = start(method, |len: usize| vec![1u8; len], (len,));
                let pid = child.get_ref().pid();
                let killer = async {
                    sleep(Duration::from_micros(round as u64 * 300)).await;
                    support::kill(pid, Signal::KILL);
                };
                let (result, ()) = tokio::join!(timeout(LONG, child.result()), killer);
                match result.expect("in time") {
                    Ok(bytes) => assert_eq!(bytes.len(), len),
                    Err(TaskError::Lost(lost)) => assert_eq!(lost.pid(), pid),
                    Err(TaskError::Result(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            });
        }
    });
}

#[test]
fn a_runtime_with_threads_refuses_to_fork() {
    let _guard = support::guard(30);
    many().block_on(async {
        let child = bunshin::Process::builder()
            .start_method(StartMethod::Fork)
            .start(|| (), ());
        assert_eq!(
            child.expect_err("it has threads").kind(),
            ErrorKind::Threads
        );
    });
}

// -- pipes

#[test]
fn a_dropped_receive_has_taken_nothing() {
    support::each_method(|method| {
        fn echo(connection: bunshin::Connection<u64>) {
            while let Ok(number) = connection.recv() {
                connection.send(number).expect("somebody waits");
            }
        }
        here(async {
            let (near, far) = bunshin::pipe().expect("a pipe");
            let child = start(method, echo, (far,));
            let near = Connection::new(near).expect("it can be watched");
            let mut next = 0;
            for number in 0..3000u64 {
                near.send(number).await.expect("it listens");
                // Of two that wait, one is dropped, at any moment.
                tokio::select! {
                    biased;
                    () = tokio::task::yield_now() => {}
                    back = near.recv() => {
                        assert_eq!(back.expect("it answers"), next);
                        next += 1;
                    }
                }
                if number % 5 == 0 {
                    let soon = Duration::from_micros(number % 90);
                    if let Ok(back) = timeout(soon, near.recv()).await {
                        assert_eq!(back.expect("it answers"), next);
                        next += 1;
                    }
                }
            }
            while next < 3000 {
                let back = timeout(LONG, near.recv()).await.expect("nothing is lost");
                assert_eq!(back.expect("it answers"), next);
                next += 1;
            }
            drop(near);
            assert!(child.join().await.expect("it ends").success());
        });
    });
}

#[test]
fn a_full_pipe_is_waited_for() {
    support::each_method(|method| {
        fn slow(numbers: bunshin::Receiver<(u64, Vec<u8>)>) -> u64 {
            let mut sum = 0;
            for (at, message) in numbers.iter().enumerate() {
                let (number, bytes) = message.expect("it comes");
                assert_eq!(number as usize, at);
                assert!(bytes.iter().all(|byte| *byte == number as u8));
                sum += bytes.len() as u64;
                if at % 500 == 0 {
                    thread::sleep(Duration::from_millis(3));
                }
            }
            sum
        }
        here(async {
            let (sender, receiver) = bunshin::channel().expect("a pipe");
            let child = start(method, slow, (receiver,));
            let sender = Sender::new(sender).expect("it can be watched");
            let mut sum = 0;
            for number in 0..6000u64 {
                // Some beyond a quarter of the ring, some beyond all of it.
                let len = match number % 100 {
                    0 => 200_000,
                    10..30 => 9_000,
                    _ => 300,
                };
                sum += len as u64;
                let sent = sender.send((number, vec![number as u8; len]));
                timeout(LONG, sent)
                    .await
                    .expect("in time")
                    .expect("it is received");
            }
            drop(sender);
            assert_eq!(child.result().await.expect("all came"), sum);
        });
    });
}

#[test]
fn handles_wait_for_room_too() {
    let _guard = support::guard(60);
    here(async {
        let (sender, receiver) = bunshin::channel().expect("a pipe");
        let (sender, receiver) = (
            Sender::new(sender).expect("it can be watched"),
            Receiver::new(receiver).expect("it can be watched"),
        );
        let value = bunshin::Value::new(0u32).expect("a value");
        let send = async {
            for _ in 0..2000 {
                let copy = value.clone();
                timeout(LONG, sender.send(copy))
                    .await
                    .expect("in time")
                    .expect("it goes");
            }
        };
        let receive = async {
            for number in 0..2000u32 {
                if number % 300 == 0 {
                    sleep(Duration::from_millis(5)).await;
                }
                let copy = timeout(LONG, receiver.recv()).await.expect("in time");
                *copy.expect("it comes").lock().expect("it is free") += 1;
            }
        };
        tokio::join!(send, receive);
        assert_eq!(*value.lock().expect("it is free"), 2000);
    });
}

#[test]
fn several_tasks_use_one_end_on_several_threads() {
    let _guard = support::guard(90);
    const EACH: u64 = 5000;
    many().block_on(async {
        let (sender, receiver) = bunshin::channel::<u64>().expect("a pipe");
        let sender = Arc::new(Sender::new(sender).expect("it can be watched"));
        let receiver = Arc::new(Receiver::new(receiver).expect("it can be watched"));
        let sum = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let (receiver, sum) = (Arc::clone(&receiver), Arc::clone(&sum));
            tasks.push(tokio::spawn(async move {
                loop {
                    match receiver.recv().await {
                        Ok(number) => sum.fetch_add(number, SeqCst),
                        Err(RecvError::Disconnected) => return,
                        Err(error) => panic!("{error}"),
                    };
                }
            }));
        }
        let senders: Vec<_> = (0..4)
            .map(|_| {
                let sender = Arc::clone(&sender);
                tokio::spawn(async move {
                    for number in 1..=EACH {
                        sender.send(number).await.expect("somebody receives");
                    }
                })
            })
            .collect();
        for sender in senders {
            timeout(LONG, sender)
                .await
                .expect("in time")
                .expect("it sends");
        }
        drop(sender);
        for task in tasks {
            timeout(LONG, task)
                .await
                .expect("in time")
                .expect("it receives");
        }
        assert_eq!(sum.load(SeqCst), 4 * EACH * (EACH + 1) / 2);
    });
}

#[test]
fn a_killed_peer_ends_a_wait() {
    support::each_method(|method| {
        here(async {
            for round in 0..15u64 {
                let (near, far) = bunshin::pipe::<u64>().expect("a pipe");
                fn flood(connection: bunshin::Connection<u64>) {
                    for number in 0.. {
                        connection.send(number).expect("somebody receives");
                    }
                }
                let child = start(method, flood, (far,));
                let near = Connection::new(near).expect("it can be watched");
                let killer = async {
                    sleep(Duration::from_micros(2000 + 300 * round)).await;
                    child.get_ref().kill().expect("it may");
                };
                let receive = async {
                    let mut next = 0;
                    loop {
                        match near.recv().await {
                            Ok(number) => assert_eq!(number, next),
                            Err(RecvError::Disconnected) => return,
                            Err(error) => panic!("{error}"),
                        }
                        next += 1;
                    }
                };
                let ended = async { tokio::join!(receive, killer) };
                timeout(LONG, ended).await.expect("in time");
                // Nobody will ever make room.
                let full = async {
                    loop {
                        if let Err(error) = near.send(7).await {
                            return error;
                        }
                    }
                };
                let error = timeout(LONG, full).await.expect("in time");
                assert!(matches!(error, SendError::Disconnected(7)), "{error}");
                child.join().await.expect("it ends");
            }
        });
    });
}

#[test]
fn a_sender_that_waits_learns_of_the_end() {
    support::each_method(|method| {
        here(async {
            let (sender, receiver) = bunshin::channel::<u64>().expect("a pipe");
            let idle = |_receiver: bunshin::Receiver<u64>| thread::park();
            let child = start(method, idle, (receiver,));
            let sender = Sender::new(sender).expect("it can be watched");
            while sender.try_send(1).is_ok() {}
            let mut send = Box::pin(sender.send(2));
            assert!(is_pending(&mut send).await);
            child.get_ref().kill().expect("it may");
            let error = timeout(LONG, send).await.expect("in time");
            assert!(matches!(error, Err(SendError::Disconnected(2))));
            child.join().await.expect("it ends");
        });
    });
}

#[test]
fn stream_connections_are_awaited() {
    let _guard = support::guard(60);
    here(async {
        let (near, far) = UnixStream::pair().expect("a pair");
        let near = StreamConnection::<Vec<u8>>::new(near.into()).expect("it can be watched");
        let far = StreamConnection::<Vec<u8>>::new(far.into()).expect("it can be watched");
        // One that is dropped while a message comes in parts has lost nothing.
        let long = vec![5u8; 3 << 20];
        let send = near.send(long.clone());
        let receive = async {
            for _ in 0..50 {
                if let Ok(message) = timeout(Duration::from_micros(200), far.recv()).await {
                    return message;
                }
            }
            far.recv().await
        };
        let both = async { tokio::join!(send, receive) };
        let (sent, received) = timeout(LONG, both).await.expect("in time");
        sent.expect("it is received");
        assert!(received.expect("it comes") == long);
        for len in 0..300 {
            near.send(vec![1; len]).await.expect("it goes");
            assert_eq!(far.recv().await.expect("it comes").len(), len);
        }
        drop(near);
        assert!(matches!(far.recv().await, Err(RecvError::Disconnected)));
    });
}

// -- queues

#[test]
fn a_hundred_thousand_items_reach_async_consumers() {
    const ITEMS: u64 = 100_000;
    fn produce(queue: bunshin::Queue<u64>, from: u64) {
        for number in (from..ITEMS).step_by(2) {
            queue.send(number).expect("it is open");
        }
    }
    for method in spawning() {
        let _guard = support::guard_after(120, support::start_each_way_once);
        many().block_on(async {
            let queue = bunshin::Queue::new().expect("a queue");
            let producers = [0, 1].map(|from| start(method, produce, (queue.clone(), from)));
            let queue = Queue::new(queue).expect("it can be watched");
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let queue = queue.clone();
                    tokio::spawn(async move {
                        let (mut count, mut sum) = (0, 0);
                        while let Ok(item) = queue.recv().await {
                            count += 1;
                            sum += item;
                        }
                        (count, sum)
                    })
                })
                .collect();
            for producer in producers {
                let status = timeout(LONG, producer.join()).await.expect("in time");
                assert!(status.expect("it ends").success());
            }
            queue.get_ref().close().expect("it can be closed");
            let (mut count, mut sum) = (0, 0);
            for task in tasks {
                let (one, part) = timeout(LONG, task)
                    .await
                    .expect("in time")
                    .expect("it ends");
                count += one;
                sum += part;
            }
            assert_eq!((count, sum), (ITEMS, ITEMS * (ITEMS - 1) / 2), "{method}");
        });
    }
}

#[test]
fn a_bounded_queue_is_filled_and_emptied() {
    support::each_method(|method| {
        fn consume(queue: bunshin::Queue<u64>) -> u64 {
            let mut sum = 0;
            for item in &queue {
                let item = item.expect("a number");
                if item % 700 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
                sum += item;
            }
            sum
        }
        here(async {
            let queue = bunshin::Queue::bounded(4).expect("a queue");
            let child = start(method, consume, (queue.clone(),));
            let queue = Queue::new(queue).expect("it can be watched");
            let half = |from: u64| {
                let queue = queue.clone();
                async move {
                    for number in (from..6000).step_by(2) {
                        let sent = timeout(LONG, queue.send(number)).await;
                        sent.expect("in time").expect("it is open");
                    }
                }
            };
            tokio::join!(half(0), half(1));
            queue.get_ref().close().expect("it can be closed");
            assert_eq!(child.result().await.expect("all came"), 6000 * 5999 / 2);
        });
    });
}

#[test]
fn a_dropped_wait_for_an_item_or_room_leaves_nothing() {
    let _guard = support::guard(60);
    here(async {
        let queue = Queue::new(bunshin::Queue::bounded(1).expect("a queue")).expect("watched");
        for number in 0..200u64 {
            tokio::select! {
                biased;
                () = sleep(Duration::from_micros(number % 7 * 100)) => {}
                _ = queue.recv() => panic!("there is nothing"),
            }
            queue.send(number).await.expect("there is room");
            tokio::select! {
                biased;
                () = sleep(Duration::from_micros(number % 5 * 100)) => {}
                _ = queue.send(999) => panic!("there is no room"),
            }
            assert_eq!(queue.get_ref().len(), 1);
            assert_eq!(queue.recv().await.expect("it is there"), number);
        }
        assert!(queue.get_ref().is_empty());
        // Whoever waits for room learns of the end.
        queue.send(1).await.expect("there is room");
        let close = async {
            sleep(Duration::from_millis(20)).await;
            queue.get_ref().close().expect("it can be closed");
        };
        let (sent, ()) = tokio::join!(timeout(LONG, queue.send(2)), close);
        let sent = sent.expect("in time");
        assert!(matches!(sent, Err(SendError::Disconnected(2))));
    });
}

#[test]
fn killed_producers_and_consumers_hold_nobody_up() {
    support::each_method(|method| {
        fn churn(queue: bunshin::Queue<u64>) {
            loop {
                queue.send(1).expect("it is open");
                let _ = queue.try_recv();
            }
        }
        let queue = bunshin::Queue::bounded(3).expect("a queue");
        for round in 0..12u64 {
            // A runtime each: who waits for room has a thread in it, and then nothing is forked.
            here(async {
                let own = Queue::new(queue.clone()).expect("it can be watched");
                let children = [(); 2].map(|()| start(method, churn, (queue.clone(),)));
                let end = Instant::now() + Duration::from_micros(4000 + 500 * round);
                while Instant::now() < end {
                    let item = timeout(LONG, own.recv()).await;
                    item.expect("in time").expect("an item");
                    let _ = queue.try_send(2);
                }
                for child in children {
                    child.get_ref().kill().expect("it may");
                    child.join().await.expect("it ends");
                }
                while queue.try_recv().is_ok() {}
                for number in 0..20 {
                    let both = async { tokio::join!(own.recv(), own.send(number)) };
                    let (item, sent) = timeout(LONG, both).await.expect("in time");
                    sent.expect("it is open");
                    assert_eq!(item.expect("it is there"), number);
                }
                for _ in 0..3 {
                    own.send(1).await.expect("there is room");
                }
                let mut full = Box::pin(own.send(1));
                assert!(is_pending(&mut full).await);
                queue.recv().expect("it is there");
                timeout(LONG, full)
                    .await
                    .expect("in time")
                    .expect("there is room");
                while queue.try_recv().is_ok() {}
            });
        }
    });
}

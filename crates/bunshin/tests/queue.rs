//! Queues between processes: order, limits, waiting, what items may hold, and joining.

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{
    Array, Buffer, ErrorKind, JoinError, JoinableQueue, Lock, Queue, RawArray, RecvError,
    RecvTimeoutError, SendError, Sender, SimpleQueue, StartMethod, TryRecvError, TrySendError,
    channel, pipe, wait,
};
use rustix::process::{Resource, Rlimit};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use support::{each_method, guard, start, wait_until};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(30);

/// Bytes of which every one follows from the length.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + len) as u8).collect()
}

/// Memory of the queues of this process, in bytes.
fn memory_in_use() -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc/self/fd").expect("/proc is mounted") {
        let path = entry.expect("it can be listed").path();
        let Ok(target) = std::fs::read_link(&path) else {
            continue;
        };
        if target.to_string_lossy().contains("memfd:bunshin") {
            sum += rustix::fs::stat(&path).map_or(0, |stat| stat.st_blocks as u64 * 512);
        }
    }
    sum
}

#[test]
fn items_of_every_size_come_back_in_order() {
    each_method(|method| {
        fn echo(there: Queue<Vec<u8>>, back: Queue<Vec<u8>>) {
            for item in &there {
                back.send(item.unwrap()).unwrap();
            }
            back.close().unwrap();
        }
        let (there, back) = (Queue::new().unwrap(), Queue::new().unwrap());
        let child = start(method, echo, (there.clone(), back.clone()));
        // Around the limits of records, of what lies inside, and of chunks.
        let around = |n: usize| n - 9..n + 9;
        let sizes: Vec<usize> = (0..40)
            .chain(around(16 << 10))
            .chain(around(48 << 10))
            .chain(around(64 << 10))
            .chain([1 << 20, 5_000_001, 3, 0])
            .collect();
        for size in &sizes {
            there.send(pattern(*size)).unwrap();
        }
        there.close().unwrap();
        for size in &sizes {
            assert!(back.recv().unwrap() == pattern(*size), "{size} bytes");
        }
        assert!(matches!(back.recv(), Err(RecvError::Disconnected)));
        child.result().unwrap();
        // Large items leave no memory behind, and chunks only a few.
        assert!(memory_in_use() < 4 << 20, "{} bytes", memory_in_use());
    });
}

#[test]
fn each_item_goes_to_one_consumer_and_each_producers_in_order() {
    const EACH: u64 = 3_000;
    each_method(|method| {
        fn produce(queue: Queue<(u64, u64)>, id: u64) {
            for n in 0..EACH {
                queue.send((id, n)).unwrap();
            }
        }
        fn consume(queue: Queue<(u64, u64)>, seen: RawArray<u8>, id: usize) -> u64 {
            let mut last = [None; 4];
            let mut count = 0;
            for item in &queue {
                let (producer, n) = item.unwrap();
                assert!(last[producer as usize] < Some(n), "out of order");
                last[producer as usize] = Some(n);
                let place = (producer * EACH + n) as usize;
                assert_eq!(seen.fetch_add(place, 1, SeqCst), 0, "{id}: came twice");
                count += 1;
            }
            count
        }
        for capacity in [0, 1, 7] {
            let queue = match capacity {
                0 => Queue::new().unwrap(),
                capacity => Queue::bounded(capacity).unwrap(),
            };
            let each = if capacity == 1 { 2 } else { 4 };
            let seen = RawArray::<u8>::new(4 * EACH as usize).unwrap();
            let consumers: Vec<_> = (0..3)
                .map(|id| start(method, consume, (queue.clone(), seen.clone(), id)))
                .collect();
            let producers: Vec<_> = (0..each)
                .map(|id| start(method, produce, (queue.clone(), id)))
                .collect();
            for producer in producers {
                producer.result().unwrap();
            }
            queue.close().unwrap();
            let counts = consumers.into_iter().map(|child| child.result().unwrap());
            assert_eq!(counts.sum::<u64>(), each * EACH);
            assert!(queue.is_empty());
        }
    });
}

#[test]
fn no_consumer_starves() {
    each_method(|method| {
        fn consume(queue: Queue<u64>, counts: RawArray<u64>, id: usize) {
            for _ in &queue {
                counts.fetch_add(id, 1, SeqCst);
            }
        }
        let queue = Queue::bounded(100).unwrap();
        let counts = RawArray::<u64>::new(4).unwrap();
        let children: Vec<_> = (0..4)
            .map(|id| start(method, consume, (queue.clone(), counts.clone(), id)))
            .collect();
        let all_have = |n: u64| (0..4).all(|id| counts.load(id, SeqCst) >= n);
        let begun = Instant::now();
        let mut n = 0u64;
        while !all_have(1000) {
            queue.send(n).unwrap();
            n += 1;
            assert!(begun.elapsed() < LONG, "one starves: {counts:?}");
        }
        queue.close().unwrap();
        for child in children {
            child.result().unwrap();
        }
        assert_eq!((0..4).map(|id| counts.load(id, SeqCst)).sum::<u64>(), n);
    });
}

#[test]
fn a_hundred_thousand_items_wait_and_are_counted() {
    let _guard = guard(120);
    let queue = Queue::new().unwrap();
    let before = memory_in_use();
    for n in 0..100_000usize {
        assert_eq!(queue.len(), n);
        queue.send((n, "x".repeat(n % 1000))).unwrap();
    }
    assert!(memory_in_use() > before + (40 << 20));
    for n in 0..100_000usize {
        assert_eq!(queue.len(), 100_000 - n);
        assert!(!queue.is_empty());
        let (number, text): (usize, String) = queue.recv().unwrap();
        assert_eq!((number, text.len()), (n, n % 1000));
    }
    assert!(queue.is_empty());
    assert!(matches!(queue.try_recv(), Err(TryRecvError::Empty)));
    let kept = memory_in_use() - before;
    assert!(kept < 4 << 20, "{kept} bytes are kept by an empty queue");
}

#[test]
fn a_full_queue_waits_tries_and_times_out() {
    each_method(|method| {
        let queue = Queue::bounded(2).unwrap();
        assert_eq!(queue.capacity(), Some(2));
        queue.send(0).unwrap();
        queue.send(1).unwrap();
        assert!(queue.is_full());
        assert!(matches!(queue.try_send(7), Err(TrySendError::Full(7))));
        let short = Duration::from_millis(30);
        let begun = Instant::now();
        assert!(matches!(
            queue.send_timeout(8, short),
            Err(TrySendError::Full(8))
        ));
        assert!(begun.elapsed() >= short);
        let waiting = start(
            method,
            |queue: Queue<i32>| (2..100).for_each(|n| queue.send(n).unwrap()),
            (queue.clone(),),
        );
        for n in 0..100 {
            if n % 10 == 0 {
                // Time for the other one to fall asleep.
                thread::sleep(Duration::from_millis(5));
            }
            assert!(queue.len() <= 2);
            assert_eq!(queue.recv_timeout(LONG).unwrap(), n);
        }
        waiting.result().unwrap();
        let begun = Instant::now();
        let nothing = queue.recv_timeout(short);
        assert!(matches!(nothing, Err(RecvTimeoutError::Timeout)));
        assert!(begun.elapsed() >= short);
        assert_eq!(
            Queue::<u8>::bounded(0).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    });
}

/// Fails to be encoded, or to be decoded, where it says so.
#[derive(Debug, PartialEq)]
struct Fragile {
    encode: bool,
    decode: bool,
}

impl Serialize for Fragile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A handle is on its way already when it fails.
        let lock = Lock::new().map_err(S::Error::custom)?;
        if self.encode {
            (lock, self.decode).serialize(serializer)
        } else {
            (lock, Unencodable).serialize(serializer)
        }
    }
}

struct Unencodable;

impl Serialize for Unencodable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("it has no form"))
    }
}

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (_, decode) = <(Lock, bool)>::deserialize(deserializer)?;
        if !decode {
            return Err(D::Error::custom("it cannot be read"));
        }
        Ok(Self {
            encode: true,
            decode,
        })
    }
}

#[test]
fn an_item_that_cannot_be_encoded_comes_back_and_one_that_cannot_be_decoded_is_told_of() {
    let _guard = guard(60);
    let queue = Queue::new().unwrap();
    let fragile = |encode, decode| Fragile { encode, decode };
    for _ in 0..300 {
        match queue.send(fragile(false, true)) {
            Err(SendError::Failed(item, error)) => {
                assert_eq!(item, fragile(false, true));
                assert_eq!(error.kind(), ErrorKind::Encode, "{error}");
                assert!(error.to_string().contains("it has no form"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(queue.is_empty());
    }
    for _ in 0..300 {
        queue.send(fragile(true, false)).unwrap();
        queue.send(fragile(true, true)).unwrap();
        match queue.recv() {
            Err(RecvError::Failed(error)) => assert_eq!(error.kind(), ErrorKind::Decode),
            other => panic!("{other:?}"),
        }
        assert_eq!(queue.recv().unwrap(), fragile(true, true));
    }
}

/// What an item may hold besides plain values.
#[derive(Serialize, Deserialize)]
struct Kit {
    name: String,
    lock: Lock,
    answers: Sender<u64>,
    array: Array<u32>,
    small: Buffer<u64>,
    large: Buffer<u64>,
    queue: Queue<Vec<String>>,
}

#[test]
fn items_hold_connections_locks_arrays_buffers_and_queues() {
    each_method(|method| {
        fn work(kits: Queue<Kit>) {
            for kit in &kits {
                let kit = kit.unwrap();
                assert!(kit.lock.try_lock().is_err(), "the parent has it");
                kit.array.lock().unwrap()[1] = 7;
                let sum = kit.small.iter().sum::<u64>() + kit.large.iter().sum::<u64>();
                kit.queue.send(vec![kit.name]).unwrap();
                kit.answers.send(sum).unwrap();
            }
        }
        let kits = Queue::new().unwrap();
        let child = start(method, work, (kits.clone(),));
        for n in 0..20u64 {
            let (answers, receiver) = channel().unwrap();
            let lock = Lock::new().unwrap();
            let array = Array::<u32>::new(3).unwrap();
            let queue = Queue::new().unwrap();
            let held = lock.lock().unwrap();
            let kit = Kit {
                name: format!("kit {n}"),
                lock: lock.clone(),
                answers,
                array: array.clone(),
                small: vec![n; 100].into(),
                large: vec![n; 300_000].into(),
                queue: queue.clone(),
            };
            kits.send(kit).unwrap();
            assert_eq!(receiver.recv().unwrap(), n * 300_100);
            assert_eq!(queue.recv().unwrap(), [format!("kit {n}")]);
            assert_eq!(array.lock().unwrap()[1], 7);
            drop(held);
        }
        kits.close().unwrap();
        child.result().unwrap();
    });
}

#[test]
fn a_queue_is_full_of_items_with_handles_before_its_socket_is() {
    let _guard = guard(60);
    let queue = Queue::new().unwrap();
    let lock = Lock::new().unwrap();
    let sent = (0..1000).take_while(|_| queue.try_send(Some(lock.clone())).is_ok());
    assert_eq!(sent.count(), 128);
    assert!(queue.is_full());
    assert!(matches!(queue.try_send(None), Err(TrySendError::Full(_))));
    for _ in 0..1000 {
        assert!(queue.recv().unwrap().is_some());
        queue.send(Some(lock.clone())).unwrap();
    }
    while queue.try_recv().is_ok() {}
    let many: Vec<_> = (0..201).map(|_| lock.clone()).collect();
    let too_many = Queue::new().unwrap();
    match too_many.send(many) {
        Err(SendError::Failed(back, error)) => {
            assert_eq!((back.len(), error.kind()), (201, ErrorKind::InvalidInput));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_item_stays_where_there_are_too_many_files_to_take_it() {
    let _guard = guard(60);
    let body = || {
        let queue = Queue::new().unwrap();
        let locks: Vec<_> = (0..50).map(|_| Lock::new().unwrap()).collect();
        queue.send(locks).unwrap();
        let before = rustix::process::getrlimit(Resource::Nofile);
        let open = support::open_descriptors(std::process::id()) as u64;
        let few = Rlimit {
            current: Some(open + 20),
            maximum: before.maximum,
        };
        rustix::process::setrlimit(Resource::Nofile, few).unwrap();
        for _ in 0..10 {
            assert!(matches!(queue.recv(), Err(RecvError::Failed(_))));
            assert_eq!(queue.len(), 1);
        }
        rustix::process::setrlimit(Resource::Nofile, before).unwrap();
        assert_eq!(queue.recv().unwrap().len(), 50);
    };
    start(StartMethod::Spawn, body, ()).result().unwrap();
}

#[test]
fn an_item_larger_than_the_memory_comes_back() {
    let _guard = guard(60);
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    let len = (kib << 10) - (64 << 20);
    if Vec::<u8>::new().try_reserve_exact(len).is_err() {
        eprintln!("left out: the system does not promise memory that it has not");
        return;
    }
    let queue = Queue::new().unwrap();
    // Zeros that nobody has looked at take no memory, before or after.
    match queue.send(Buffer::from(vec![0u8; len])) {
        Err(SendError::Failed(back, error)) => {
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
            assert_eq!(back.len(), len);
        }
        other => panic!("{other:?}"),
    }
    assert!(queue.is_empty());
    queue.send(Buffer::from(vec![1; 3])).unwrap();
    assert_eq!(queue.recv().unwrap(), [1; 3]);
}

#[test]
fn closing_ends_every_wait() {
    each_method(|method| {
        fn wait_for_item(queue: Queue<u8>, ready: Sender<()>) -> bool {
            ready.send(()).unwrap();
            matches!(queue.recv(), Err(RecvError::Disconnected))
        }
        fn wait_for_room(queue: Queue<u8>, ready: Sender<()>) -> bool {
            ready.send(()).unwrap();
            matches!(queue.send(9), Err(SendError::Disconnected(9)))
        }
        let empty = Queue::<u8>::new().unwrap();
        let full = Queue::bounded(1).unwrap();
        full.send(1).unwrap();
        let mut children = Vec::new();
        for n in 0..6 {
            let (ready, is_ready) = channel().unwrap();
            children.push(match n % 2 {
                0 => start(method, wait_for_item, (empty.clone(), ready)),
                _ => start(method, wait_for_room, (full.clone(), ready)),
            });
            is_ready.recv().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
        for queue in [&empty, &full] {
            queue.close().unwrap();
            queue.close().unwrap();
            assert!(queue.is_closed());
            assert!(matches!(
                queue.try_send(1),
                Err(TrySendError::Disconnected(1))
            ));
        }
        for child in children {
            assert!(child.result().unwrap());
        }
        assert_eq!(full.recv().unwrap(), 1);
        assert!(full.iter().next().is_none());
        assert!(matches!(empty.try_recv(), Err(TryRecvError::Disconnected)));
    });
}

/// Goes out as a queue of numbers, and comes in as one of texts.
struct Disguise(Option<Queue<u8>>);

impl Serialize for Disguise {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Disguise {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<Queue<String>>::deserialize(deserializer).map(|_| Self(None))
    }
}

#[test]
fn a_queue_of_another_type_is_refused() {
    let _guard = guard(60);
    let (here, there) = pipe().unwrap();
    here.send(Disguise(Some(Queue::new().unwrap()))).unwrap();
    match there.recv() {
        Err(RecvError::Failed(error)) => {
            assert!(error.to_string().contains("another type"), "{error}");
        }
        Ok(_) => panic!("it came"),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn the_descriptor_is_readable_exactly_while_there_is_an_item() {
    each_method(|method| {
        let queue = Queue::<u32>::new().unwrap();
        let is_readable = || {
            let handle = queue.fileno().unwrap();
            let mut fds = [rustix::event::PollFd::new(
                &handle,
                rustix::event::PollFlags::IN,
            )];
            let zero = rustix::time::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            rustix::event::poll(&mut fds, Some(&zero)).unwrap() == 1
        };
        queue.send(0).unwrap();
        assert!(is_readable());
        queue.recv().unwrap();
        assert!(!is_readable());
        let echo = |there: Queue<u32>, back: Queue<u32>| {
            for n in &there {
                back.send(n.unwrap()).unwrap();
            }
        };
        let (there, silent) = (Queue::new().unwrap(), Queue::<u8>::new().unwrap());
        let child = start(method, echo, (there.clone(), queue.clone()));
        for n in 0..300 {
            assert!(!is_readable());
            there.send(n).unwrap();
            if n % 3 == 0 {
                there.send(n).unwrap();
                assert_eq!(wait(&[&silent, &queue], Some(LONG)).unwrap(), [1]);
                assert!(is_readable());
                assert_eq!(queue.recv().unwrap(), n);
            }
            assert_eq!(wait(&[&queue], Some(LONG)).unwrap(), [0]);
            assert!(is_readable());
            assert_eq!(queue.try_recv().unwrap(), n);
        }
        assert!(
            wait(&[&queue], Some(Duration::from_millis(10)))
                .unwrap()
                .is_empty()
        );
        there.close().unwrap();
        child.result().unwrap();
        queue.close().unwrap();
        assert!(is_readable());
        assert_eq!(wait(&[&queue], None).unwrap(), [0]);
    });
}

#[test]
fn many_who_wait_by_descriptor_share_the_items() {
    each_method(|method| {
        fn consume(queue: Queue<u32>) -> u32 {
            let mut count = 0;
            loop {
                wait(&[&queue], None).unwrap();
                match queue.try_recv() {
                    Ok(_) => count += 1,
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return count,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        let queue = Queue::new().unwrap();
        let children: Vec<_> = (0..3)
            .map(|_| start(method, consume, (queue.clone(),)))
            .collect();
        for n in 0..3000 {
            queue.send(n).unwrap();
            if n % 100 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        queue.close().unwrap();
        let counts = children.into_iter().map(|child| child.result().unwrap());
        assert_eq!(counts.sum::<u32>(), 3000);
    });
}

#[test]
fn who_waits_uses_no_processor() {
    fn ticks(pid: u32) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let times: Vec<u64> = fields
            .skip(11)
            .take(2)
            .map(|n| n.parse().unwrap())
            .collect();
        times.iter().sum()
    }
    each_method(|method| {
        let queue = Queue::<u8>::new().unwrap();
        let full = Queue::bounded(1).unwrap();
        full.send(0).unwrap();
        let receiving = start(method, |q: Queue<u8>| drop(q.recv()), (queue.clone(),));
        let sending = start(method, |q: Queue<u8>| drop(q.send(1)), (full.clone(),));
        thread::sleep(Duration::from_millis(300));
        let pids = [receiving.pid(), sending.pid()];
        let before = pids.map(ticks);
        thread::sleep(Duration::from_millis(700));
        // A tick is 10 ms; one may fall into the way to sleep on a loaded machine.
        for (pid, before) in pids.iter().zip(before) {
            assert!(ticks(*pid) <= before + 2, "it does not sleep");
        }
        queue.send(1).unwrap();
        full.recv().unwrap();
        receiving.result().unwrap();
        sending.result().unwrap();
    });
}

#[test]
fn a_simple_queue_does_what_it_says() {
    each_method(|method| {
        let queue = SimpleQueue::<String>::new().unwrap();
        let work = |queue: SimpleQueue<String>, n: usize| queue.send("x".repeat(n)).unwrap();
        start(method, work, (queue.clone(), 70_000))
            .result()
            .unwrap();
        assert!(!queue.is_empty());
        assert_eq!(queue.recv_timeout(LONG).unwrap().len(), 70_000);
        assert!(matches!(queue.try_recv(), Err(TryRecvError::Empty)));
        queue.close().unwrap();
        assert!(matches!(queue.recv(), Err(RecvError::Disconnected)));
    });
}

#[test]
fn joining_waits_for_what_is_taken_and_not_done() {
    each_method(|method| {
        fn work(tasks: JoinableQueue<u64>, done: RawArray<u64>) {
            for task in tasks.iter() {
                let task = task.unwrap();
                if task % 100 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
                done.fetch_add(0, 1, SeqCst);
                tasks.task_done().unwrap();
            }
            let once_more = tasks.task_done().unwrap_err();
            assert_eq!(once_more.kind(), ErrorKind::InvalidInput);
        }
        let tasks = JoinableQueue::new().unwrap();
        tasks.join().unwrap();
        let done = RawArray::<u64>::new(1).unwrap();
        let children: Vec<_> = (0..3)
            .map(|_| start(method, work, (tasks.clone(), done.clone())))
            .collect();
        for round in 1..=30 {
            for task in 0..200 {
                tasks.send(task).unwrap();
            }
            tasks.join().unwrap();
            assert_eq!(done.load(0, SeqCst), round * 200);
            assert_eq!(tasks.unfinished(), 0);
        }
        tasks.close().unwrap();
        for child in children {
            child.result().unwrap();
        }
        let tasks = JoinableQueue::bounded(5).unwrap();
        tasks.send(1).unwrap();
        assert!(matches!(tasks.try_join(), Err(JoinError::Unfinished)));
        tasks.recv().unwrap();
        assert_eq!((tasks.len(), tasks.unfinished()), (0, 1));
        let short = Duration::from_millis(20);
        assert!(matches!(
            tasks.join_timeout(short),
            Err(JoinError::Unfinished)
        ));
        tasks.task_done().unwrap();
        tasks.try_join().unwrap();
        assert!(tasks.task_done().is_err());
    });
}

#[test]
fn joining_tells_of_items_that_were_lost_with_their_process() {
    each_method(|method| {
        let take = |tasks: JoinableQueue<u64>, n: u64| {
            for _ in 0..n {
                tasks.recv().unwrap();
            }
            tasks.task_done().unwrap();
        };
        let tasks = JoinableQueue::new().unwrap();
        let other = tasks.clone();
        for n in 0..5 {
            tasks.send(n).unwrap();
        }
        start(method, take, (tasks.clone(), 3)).result().unwrap();
        assert!(matches!(
            tasks.join_timeout(Duration::from_millis(300)),
            Err(JoinError::Unfinished)
        ));
        assert_eq!(tasks.unfinished(), 2);
        start(method, take, (tasks.clone(), 2)).result().unwrap();
        assert!(matches!(tasks.join(), Err(JoinError::Lost(3))));
        // A clone is the same handle; what is told is told.
        other.join().unwrap();
        assert!(wait_until(LONG, || tasks.unfinished() == 0));
    });
}

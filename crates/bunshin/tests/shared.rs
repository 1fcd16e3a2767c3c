//! Values and arrays in shared memory, in one process and in several.
#![allow(
    unsafe_code,
    reason = "`Pod` is implemented by hand, as the derive macro is not at hand"
)]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use bunshin::{
    Array, Connection, ErrorKind, Lock, LockError, Process, RawArray, RawValue, StartMethod,
    TaskError, Value, pipe,
};
use bytemuck::{Pod, Zeroable};
use rustix::process::Signal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Four processes, each started with the method, run a function on the same arguments.
fn in_four<A, F>(method: StartMethod, function: F, arguments: A)
where
    A: Clone + Serialize + serde::de::DeserializeOwned,
    F: bunshin::Target<(A,), Output = ()>,
{
    let start = |_| {
        let builder = Process::builder().start_method(method).daemon(true);
        builder
            .start(function, (arguments.clone(),))
            .expect("a child")
    };
    let children: Vec<_> = (0..4).map(start).collect();
    for child in children {
        child.result().expect("no panic");
    }
}

// -- what travels, and how

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Point {
    x: f64,
    y: f64,
    id: u32,
    flags: [u8; 4],
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
struct Line([u64; 8]);

// SAFETY: zeros are a valid point.
unsafe impl Zeroable for Point {}
// SAFETY: 24 bytes of fields in 24 bytes, without padding; any bytes are valid.
unsafe impl Pod for Point {}
// SAFETY: zeros are a valid line.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes of integers, aligned to 64.
unsafe impl Pod for Line {}

const POINT: Point = Point {
    x: 1.5,
    y: -0.0,
    id: 7,
    flags: [1, 2, 3, 255],
};

#[test]
fn values_and_arrays_of_plain_types_reach_children() {
    macro_rules! reach {
        ($method:expr, $($type:ty = $first:expr => $second:expr),* $(,)?) => { $({
            fn change(value: Value<$type>, raw: RawValue<$type>, both: (Array<$type>, RawArray<$type>)) {
                let mut held = value.lock().expect("free");
                assert_eq!((*held, raw.get()), ($first, $first));
                *held = $second;
                raw.set($second);
                let (array, raw_array) = both;
                assert_eq!(array.to_vec().expect("free"), [$first; 5]);
                array.lock().expect("free")[1..3].fill($second);
                raw_array.write(3, &[$second; 2]);
            }
            let (value, raw) = (Value::new($first).unwrap(), RawValue::new($first).unwrap());
            let array = Array::from_slice(&[$first; 5]).unwrap();
            let raw_array = RawArray::from_slice(&[$first; 5]).unwrap();
            let arguments = (value.clone(), raw.clone(), (array.clone(), raw_array.clone()));
            let child = Process::builder().start_method($method).start(change, arguments);
            child.unwrap().result().expect("no panic");
            assert_eq!((value.get().unwrap(), raw.get()), ($second, $second));
            let expected = [$first, $second, $second, $first, $first];
            assert_eq!(array.to_vec().unwrap(), expected);
            assert_eq!(*array.lock().unwrap(), expected);
            let expected = [$first, $first, $first, $second, $second];
            assert_eq!(raw_array.to_vec(), expected);
            let mut part = [$first; 3];
            raw_array.read(2, &mut part);
            assert_eq!(part, expected[2..]);
        })* };
    }
    support::each_method(|method| {
        reach!(method,
            u8 = 1 => 255, i8 = 1 => -128, u16 = 1 => 65_535, i32 = 5 => -5,
            u64 = 1 => u64::MAX, i128 = 1 => i128::MIN, f32 = 0.5 => -1e30,
            f64 = 0.5 => 3.25, usize = 3 => usize::MAX, [u8; 1024] = [1; 1024] => [2; 1024],
            Point = POINT => Point { id: 9, ..POINT }, Line = Line([1; 8]) => Line([2; 8]),
        );
    });
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Job {
    Add {
        to: Value<i64>,
        numbers: Option<Array<i64>>,
    },
    Many(Vec<Job>),
    Named(BTreeMap<String, (RawValue<i64>, RawArray<u8>)>),
}

#[test]
fn they_travel_anywhere_inside_a_message() {
    fn work(job: Job) -> Job {
        match &job {
            Job::Add { to, numbers } => {
                let numbers = numbers
                    .as_ref()
                    .map_or(Vec::new(), |n| n.to_vec().expect("free"));
                *to.lock().expect("free") += numbers.iter().sum::<i64>() + 1;
            }
            Job::Many(jobs) => jobs.iter().cloned().for_each(|job| drop(work(job))),
            Job::Named(all) => {
                for (name, (value, bytes)) in all {
                    value.fetch_add(name.len() as i64, SeqCst);
                    bytes.set(bytes.len() - 1, name.as_bytes()[0]);
                }
            }
        }
        job
    }
    support::each_method(|method| {
        let total = Value::new(0i64).unwrap();
        let numbers = Array::from_slice(&[1i64, 2, 3]).unwrap();
        let (raw, bytes) = (
            RawValue::new(10i64).unwrap(),
            RawArray::<u8>::new(3).unwrap(),
        );
        let add = Job::Add {
            to: total.clone(),
            numbers: Some(numbers.clone()),
        };
        let plain = Job::Add {
            to: total.clone(),
            numbers: None,
        };
        let named = [("one", raw.clone()), ("three", raw.clone())];
        let named = named.map(|(name, raw)| (name.to_owned(), (raw, bytes.clone())));
        let jobs = Job::Many(vec![
            add.clone(),
            Job::Many(vec![plain, add]),
            Job::Named(named.into()),
        ]);
        let start = |job| Process::builder().start_method(method).start(work, (job,));
        let returned = start(jobs).expect("a child").result().expect("no panic");
        assert_eq!((total.get().unwrap(), raw.get()), (15, 18));
        assert_eq!(bytes.to_vec(), *b"\0\0t");
        // What came back is still the same memory.
        drop(work(returned));
        assert_eq!((total.get().unwrap(), raw.get()), (30, 26));

        let (here, there) = pipe::<(Job, Lock)>().unwrap();
        let relay = |end: Connection<(Job, Lock)>| {
            let (job, lock) = end.recv().expect("it was sent");
            let _held = lock.lock().expect("free");
            end.send((work(job), lock.clone()))
                .expect("the parent waits");
        };
        let child = Process::builder()
            .start_method(method)
            .start(relay, (there,))
            .expect("a child");
        let lock = Lock::new().unwrap();
        here.send((
            Job::Add {
                to: total.clone(),
                numbers: None,
            },
            lock,
        ))
        .expect("it listens");
        let (job, lock) = here.recv().expect("it answers");
        drop((
            work(job),
            lock.lock()
                .expect("the child has given it back or holds it for long"),
        ));
        child.result().expect("no panic");
        assert_eq!(total.get().unwrap(), 32);
    });
}

/// Says that it is one type, and reads itself as another.
struct Liar<A, B>(A, std::marker::PhantomData<B>);

impl<A: Serialize, B> Serialize for Liar<A, B> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, A, B: Deserialize<'de>> Deserialize<'de> for Liar<A, B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        B::deserialize(deserializer)?;
        Err(serde::de::Error::custom("the wrong type was taken"))
    }
}

#[test]
fn another_type_is_refused_on_receipt() {
    fn refused<A: Serialize, B: serde::de::DeserializeOwned>(made: A) {
        let (tx, rx) = bunshin::channel::<Liar<A, B>>().unwrap();
        tx.send(Liar(made, std::marker::PhantomData))
            .expect("the reader is here");
        let error = rx.recv().err().expect("it is another type").to_string();
        assert!(!error.contains("the wrong type was taken"), "{error}");
    }
    support::each_method(|_| {
        refused::<_, Value<i64>>(Value::new(1u64).unwrap());
        refused::<_, Value<f32>>(Value::new(1u64).unwrap());
        refused::<_, RawValue<u64>>(Value::new(1u64).unwrap());
        refused::<_, Array<u64>>(Value::new(1u64).unwrap());
        refused::<_, Array<u64>>(RawArray::<u64>::new(9).unwrap());
        refused::<_, Array<[u8; 8]>>(Array::<u64>::new(9).unwrap());
        refused::<_, Lock>(Value::new(1u64).unwrap());
        refused::<_, Value<u64>>(Lock::new().unwrap());
        refused::<_, Value<u64>>(pipe::<u64>().unwrap().0);
        refused::<_, Value<u64>>(7u64);
        refused::<_, Value<u64>>((1u32, 1u64, 0u32));
    });
}

#[test]
fn outside_of_a_message_they_do_not_encode() {
    let _guard = support::guard(30);
    let value = Value::new(1u64).unwrap();
    assert!(serde_json::to_string(&value).is_err());
    assert!(serde_json::to_string(&Lock::new().unwrap()).is_err());
    assert!(serde_json::from_str::<Value<u64>>(r#"{"tag":1,"len":1,"memory":0}"#).is_err());
}

// -- from several processes at once

#[test]
fn increments_under_the_lock_are_exact() {
    fn increment((value, array): (Value<u64>, Array<u32>)) {
        for n in 0..100_000 {
            *value.lock().expect("nobody dies") += 1;
            if n % 10 == 0 {
                let mut held = array.lock().expect("nobody dies");
                let len = held.len();
                held[n % len] += 1;
            }
        }
    }
    support::each_method(|method| {
        let (value, array) = (Value::new(0u64).unwrap(), Array::<u32>::new(7).unwrap());
        in_four(method, increment, (value.clone(), array.clone()));
        assert_eq!(value.get().unwrap(), 400_000);
        assert_eq!(array.to_vec().unwrap().iter().sum::<u32>(), 40_000);
    });
}

#[test]
fn atomics_are_exact() {
    fn count((total, cells, small): (RawValue<u64>, RawArray<i32>, RawArray<u8>)) {
        for n in 0..50_000 {
            total.fetch_add(3, Relaxed);
            cells.fetch_add(n % cells.len(), -1, SeqCst);
            small.fetch_add(n % small.len(), 1, SeqCst);
        }
        while total.compare_exchange(total.load(SeqCst), 0).is_err() {}
        total.fetch_add(1, SeqCst);
    }
    fn only_add(total: RawValue<u64>) {
        for _ in 0..100_000 {
            total.fetch_add(1, SeqCst);
        }
    }
    support::each_method(|method| {
        let total = RawValue::new(u64::MAX - 5).unwrap();
        in_four(method, only_add, total.clone());
        assert_eq!(total.load(SeqCst), 400_000 - 6, "it wraps around");
        let (cells, small) = (
            RawArray::<i32>::new(10).unwrap(),
            RawArray::<u8>::new(5).unwrap(),
        );
        in_four(method, count, (total.clone(), cells.clone(), small.clone()));
        assert_eq!(cells.to_vec(), [-20_000; 10]);
        assert_eq!(small.to_vec(), [(40_000 % 256) as u8; 5]);
        total.swap(4, SeqCst);
        assert_eq!(total.compare_exchange(5, 6), Err(4));
        assert_eq!(total.compare_exchange(4, 6), Ok(4));
        total.store(9, SeqCst);
        assert_eq!((total.get(), total.clone().load(SeqCst)), (9, 9));
    });
}

#[test]
fn a_dead_holder_is_told_and_set_mends() {
    fn die_with(value: Value<u64>, array: Array<u8>) {
        let mut held = value.lock().expect("free");
        *held = 77;
        let _also = array.lock().expect("free");
        rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).expect("it may");
    }
    support::each_method(|method| {
        let (value, array) = (
            Value::new(1u64).unwrap(),
            Array::from_slice(&[1u8, 2]).unwrap(),
        );
        for _ in 0..5 {
            let builder = Process::builder().start_method(method);
            let child = builder
                .start(die_with, (value.clone(), array.clone()))
                .expect("a child");
            assert_eq!(child.join().unwrap().signal(), Some(9));
            for _ in 0..2 {
                assert_eq!(
                    value.get().expect_err("abandoned").kind(),
                    ErrorKind::Abandoned
                );
                assert_eq!(
                    array.to_vec().expect_err("abandoned").kind(),
                    ErrorKind::Abandoned
                );
            }
            match value.lock() {
                Err(LockError::Abandoned(held)) => assert_eq!(*held, 77),
                other => panic!("{other:?}"),
            }
            value.set(5).expect("it mends");
            assert_eq!(value.get().expect("mended"), 5);
            let mut held = array
                .lock()
                .or_else(LockError::recover)
                .expect("it is ours");
            held.reverse();
            drop(held);
            assert_eq!(array.to_vec().expect("mended").len(), 2);
        }
    });
}

// -- one process

#[test]
fn what_does_not_fit_is_refused() {
    let _guard = support::guard(60);
    for len in [
        1 << 46,
        1 << 50,
        1 << 60,
        (1 << 61) - 1,
        1 << 61,
        1 << 63,
        usize::MAX,
    ] {
        let errors = [
            Array::<u8>::new(len).err(),
            Array::<f64>::new(len).err(),
            RawArray::<[u64; 512]>::new(len).err(),
        ];
        for error in errors {
            let error = error.unwrap_or_else(|| panic!("{len} elements were made"));
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{len}: {error}");
        }
    }
    let empty = Array::<u64>::new(0).unwrap();
    assert!(empty.is_empty() && empty.lock().unwrap().is_empty());
    assert!(
        RawArray::<u64>::from_slice(&[])
            .unwrap()
            .to_vec()
            .is_empty()
    );
    assert_eq!(Value::new([0u8; 0]).unwrap().get().unwrap(), [0u8; 0]);
}

#[test]
fn positions_out_of_range_panic_and_change_nothing() {
    let _guard = support::guard(60);
    let array = RawArray::from_slice(&[1u32, 2, 3]).unwrap();
    let calls: [&dyn Fn(); 9] = [
        &|| _ = array.get(3),
        &|| _ = array.get(usize::MAX),
        &|| array.set(3, 9),
        &|| array.read(2, &mut [0; 2]),
        &|| array.write(0, &[9; 4]),
        &|| array.write(4, &[]),
        &|| _ = array.load(3, SeqCst),
        &|| array.store(usize::MAX / 4, 9, SeqCst),
        &|| _ = array.fetch_add(3, 1, SeqCst),
    ];
    for (n, call) in calls.iter().enumerate() {
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err(), "call {n}");
    }
    array.write(3, &[]);
    let locked = Array::from_slice(&[1u32, 2, 3]).unwrap();
    let indexed = || locked.lock().unwrap()[3] = 1;
    assert!(catch_unwind(AssertUnwindSafe(indexed)).is_err());
    // The guard was dropped as the panic went by.
    assert_eq!(locked.to_vec().unwrap(), array.to_vec());
}

#[test]
fn a_guard_may_be_forgotten() {
    fn is_busy<T>(result: Result<T, LockError<T>>) -> bool {
        matches!(result, Err(LockError::Failed(error)) if error.kind() == ErrorKind::Busy)
    }
    /// In a process of its own, as what the guards held is left.
    fn forget() {
        let other = Lock::new().unwrap();
        for round in 0..20 {
            let (value, array) = (Value::new(1u64).unwrap(), Array::<u8>::new(5000).unwrap());
            std::mem::forget(array.lock().unwrap());
            let held = other.lock().unwrap();
            std::mem::forget(value.lock().unwrap());
            assert!(is_busy(value.lock()));
            assert_eq!(value.get().expect_err("held").kind(), ErrorKind::Busy);
            if round % 2 == 0 {
                let value = value.clone();
                let in_thread = std::thread::spawn(move || value.try_lock().is_err());
                assert!(in_thread.join().unwrap());
            }
            drop(array);
            drop(held);
            drop(other.lock().unwrap());
            drop(value);
            drop(other.lock().unwrap());
        }
        // A thread that ends with it lets the next one know.
        let value = Value::new(3u64).unwrap();
        let forgetful = value.clone();
        let thread = std::thread::spawn(move || std::mem::forget(forgetful.lock().unwrap()));
        thread.join().unwrap();
        assert_eq!(
            value.get().expect_err("its holder ended").kind(),
            ErrorKind::Abandoned
        );
        value.set(4).unwrap();
        assert_eq!(value.get().unwrap(), 4);
    }
    support::each_method(|method| {
        let child = Process::builder().start_method(method).start(forget, ());
        child.expect("a child").result().expect("no panic");
    });
}

/// A clone is a handle like any other: dropping it while the lock is held keeps nothing.
#[test]
fn clones_dropped_under_the_lock_leave_nothing() {
    fn look(value: Value<u64>) -> bool {
        value.try_lock().is_err()
    }
    support::each_method(|method| {
        let value = Value::new(1u64).unwrap();
        let held = value.lock().unwrap();
        for _ in 0..10 {
            drop(value.clone());
        }
        let child = Process::builder()
            .start_method(method)
            .start(look, (value.clone(),));
        assert!(child.unwrap().result().unwrap());
        drop(held);
        drop(value);
    });
}

#[test]
fn a_guard_in_a_forked_child_says_whose_it_is() {
    support::each_method(|_| {
        let value = Value::new(5u64).unwrap();
        let array = Array::from_slice(&[1u8, 2]).unwrap();
        let mut held = value.lock().unwrap();
        let held_array = array.lock().unwrap();
        bunshin::scope(|scope| {
            let children = [
                scope.spawn(|| *held).unwrap(),
                scope.spawn(|| u64::from(held_array[0])).unwrap(),
            ];
            for child in children {
                match child.result() {
                    Err(TaskError::Panicked(panic)) => {
                        assert!(
                            panic.message().contains("forked child"),
                            "{}",
                            panic.message()
                        );
                    }
                    other => panic!("{other:?}"),
                }
                // Joined, with an exit code of 1 that the scope would report otherwise.
            }
            let is_held = scope.spawn(|| value.try_lock().is_err()).unwrap();
            assert!(is_held.result().unwrap());
        });
        *held += 1;
        drop((held, held_array));
        assert_eq!(value.get().unwrap(), 6);
    });
}

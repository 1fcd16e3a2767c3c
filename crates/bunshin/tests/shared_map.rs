//! The shared map: many types, many processes, and always the same as a `HashMap`.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bunshin::{ErrorKind, Fork, Lock, Process, SharedMap, StartMethod, fork};
use serde::{Deserialize, Serialize};

/// The fixture's guard, for when what a process makes once is there already.
fn guard(seconds: u64) -> support::Guard {
    support::guard_after(seconds, support::start_each_way_once)
}

/// Numbers without a pattern, the same ones each time.
fn numbers(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Place {
    Nowhere,
    At { row: u32, name: Option<String> },
    In(Vec<Place>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    text: String,
    tags: BTreeMap<String, f64>,
    bytes: Vec<u8>,
}

fn note(n: usize) -> Note {
    Note {
        text: "x".repeat(n),
        tags: [("n".to_owned(), n as f64)].into(),
        bytes: vec![n as u8; n % 50],
    }
}

#[test]
fn it_does_what_a_hash_map_does() {
    let _guard = guard(120);
    let map = SharedMap::<String, Vec<u32>>::new().unwrap();
    let mut model = HashMap::<String, Vec<u32>>::new();
    let mut random = numbers(0x1234_5678_9abc_def1);
    for step in 0..30_000 {
        let key = format!("key {}", random(2000));
        let value = vec![step; random(12) as usize];
        match random(12) {
            0..=4 => assert_eq!(map.insert(&key, &value).unwrap(), model.insert(key, value)),
            5..=6 => assert_eq!(map.remove(&key).unwrap(), model.remove(&key)),
            7 => {
                let change = |old: Option<Vec<u32>>| match old {
                    Some(mut old) if old.len() < 20 => {
                        old.push(step);
                        Some(old)
                    }
                    Some(_) => None,
                    None => Some(vec![step]),
                };
                let new = change(model.get(&key).cloned());
                assert_eq!(map.update(&key, change).unwrap(), new);
                match new {
                    Some(new) => drop(model.insert(key, new)),
                    None => drop(model.remove(&key)),
                }
            }
            8 => {
                let got = map.get_or_insert_with(&key, || value.clone()).unwrap();
                assert_eq!(&got, model.entry(key).or_insert(value));
            }
            9 => assert_eq!(map.contains_key(&key).unwrap(), model.contains_key(&key)),
            _ => assert_eq!(map.get(&key).unwrap(), model.get(&key).cloned()),
        }
        assert_eq!(map.len(), model.len());
        if step % 10_000 == 9_999 {
            let all: HashMap<_, _> = map.iter().collect::<Result<_, _>>().unwrap();
            assert_eq!(all, model);
        }
    }
    map.clear().unwrap();
    assert!(map.is_empty() && map.iter().next().is_none());
    map.insert("again", &vec![1]).unwrap();
    assert_eq!(map.get("again").unwrap(), Some(vec![1]));
}

#[test]
fn keys_and_values_of_any_type_and_size() {
    let _guard = guard(60);
    let map = SharedMap::<Place, Note>::new().unwrap();
    let at = |row, name: Option<&str>| Place::At {
        row,
        name: name.map(String::from),
    };
    let keys = [
        Place::Nowhere,
        at(1, None),
        at(1, Some("")),
        at(2, Some("x")),
        Place::In(vec![Place::Nowhere, at(7, None)]),
        Place::In(vec![at(9, Some("long")); 1000]),
    ];
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(map.insert(key, &note(n)).unwrap(), None);
    }
    for size in [0, 1, 100, 10_000, 3_000_000, 5] {
        for (n, key) in keys.iter().enumerate() {
            map.insert(key, &note(size + n)).unwrap();
        }
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(map.get(key).unwrap(), Some(note(size + n)));
        }
    }
    assert_eq!(map.len(), keys.len());
    let units = SharedMap::<(), ()>::new().unwrap();
    assert_eq!(units.insert(&(), &()).unwrap(), None);
    assert_eq!(units.insert(&(), &()).unwrap(), Some(()));
    assert_eq!(units.len(), 1);
}

/// Text that is equal whatever its case.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AnyCase(String);

impl PartialEq for AnyCase {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for AnyCase {}

impl Hash for AnyCase {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_ascii_lowercase().hash(state);
    }
}

#[test]
fn keys_are_equal_if_their_type_says_so() {
    let _guard = guard(30);
    let map = SharedMap::<AnyCase, u8>::new().unwrap();
    let key = |text: &str| AnyCase(text.to_owned());
    assert_eq!(map.insert(&key("Key"), &1).unwrap(), None);
    assert_eq!(map.insert(&key("kEY"), &2).unwrap(), Some(1));
    assert_eq!(map.get(&key("KEY")).unwrap(), Some(2));
    assert_eq!(map.remove(&key("key")).unwrap(), Some(2));
    assert!(map.is_empty());
}

/// All keys have one hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Same(u32);

impl Hash for Same {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[test]
fn keys_of_one_hash_are_told_apart() {
    let _guard = guard(30);
    let map = SharedMap::<Same, u32>::new().unwrap();
    for n in 0..300 {
        map.insert(&Same(n), &n).unwrap();
    }
    for n in (0..300).step_by(2) {
        assert_eq!(map.remove(&Same(n)).unwrap(), Some(n));
    }
    for n in 0..300 {
        assert_eq!(map.get(&Same(n)).unwrap(), (n % 2 == 1).then_some(n));
    }
}

#[test]
fn many_entries_come_and_go_in_bounded_memory() {
    let _guard = guard(120);
    let map = SharedMap::<u64, u64>::new().unwrap();
    for n in 0..30_000 {
        map.insert(&n, &(n * n)).unwrap();
    }
    assert_eq!(map.len(), 30_000);
    let full = mapped_bytes();
    for round in 1..=10u64 {
        for n in 0..30_000 {
            map.remove(&(n + (round - 1) * 30_000)).unwrap();
            map.insert(&(n + round * 30_000), &n).unwrap();
        }
    }
    assert_eq!(map.len(), 30_000);
    assert_eq!(map.get(&300_017).unwrap(), Some(17));
    let now = mapped_bytes();
    assert!(
        now <= full * 3,
        "{now} bytes, {full} at first, for as many entries"
    );
}

/// Bytes of this crate's memory that this process has touched.
fn mapped_bytes() -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
    let mut is_ours = false;
    let mut total = 0;
    for line in smaps.lines() {
        if line.contains('-') && line.contains(' ') && !line.contains("kB") {
            is_ours = line.contains("memfd:bunshin");
        } else if let (true, Some(kib)) = (is_ours, line.strip_prefix("Rss:")) {
            total += kib
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .expect("a number")
                << 10;
        }
    }
    total
}

#[test]
fn what_cannot_be_kept_is_refused_and_changes_nothing() {
    let _guard = guard(60);
    let map = SharedMap::<u32, Option<Lock>>::new().unwrap();
    map.insert(&1, &None).unwrap();
    let error = map.insert(&1, &Some(Lock::new().unwrap())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
    assert!(error.to_string().contains("handle"), "{error}");
    assert_eq!(map.len(), 1);
    assert!(map.get(&1).unwrap().is_some_and(|value| value.is_none()));
    // Large buffers go inside, as there is nothing beside.
    let buffers = SharedMap::<u8, bunshin::Buffer<u8>>::new().unwrap();
    buffers
        .insert(&1, &bunshin::Buffer::from(vec![7; 100_000]))
        .unwrap();
    assert_eq!(buffers.get(&1).unwrap().unwrap().len(), 100_000);
}

#[test]
fn a_change_that_panics_changes_nothing() {
    let _guard = guard(30);
    let map = SharedMap::<u32, String>::new().unwrap();
    map.insert(&1, &"one".to_owned()).unwrap();
    let update = || map.update(&1, |_| panic!("on purpose"));
    catch_unwind(AssertUnwindSafe(update)).unwrap_err();
    assert_eq!(map.get(&1).unwrap().as_deref(), Some("one"));
    map.insert(&1, &"uno".to_owned()).unwrap();
    // The same part from within a change: an error rather than a wait for ever.
    let inner = map.update(&1, |old| {
        assert_eq!(map.get(&1).unwrap(), old);
        assert_eq!(map.remove(&1).unwrap_err().kind(), ErrorKind::Busy);
        Some("eins".to_owned())
    });
    assert_eq!(inner.unwrap().as_deref(), Some("eins"));
}

#[test]
fn processes_change_it_at_a_time_under_every_start_method() {
    support::each_method(|method| {
        let counts = SharedMap::<String, u64>::new().unwrap();
        let work = |counts: SharedMap<String, u64>, own: u64| {
            for n in 0..2000u64 {
                let word = format!("word {}", n % 50);
                counts
                    .update(&word, |count| Some(count.unwrap_or(0) + 1))
                    .unwrap();
                counts.insert(&format!("{own}/{n}"), &n).unwrap();
                assert_eq!(
                    counts.get(&format!("{own}/{}", n / 2)).unwrap(),
                    Some(n / 2)
                );
                if n % 3 == 0 {
                    assert_eq!(counts.remove(&format!("{own}/{n}")).unwrap(), Some(n));
                    counts.insert(&format!("{own}/{n}"), &n).unwrap();
                }
            }
            counts
        };
        let start = |own| {
            let child = Process::builder().start_method(method);
            child.start(work, (counts.clone(), own)).unwrap()
        };
        let children: Vec<_> = (0..4).map(start).collect();
        for child in children {
            let same = child.result().expect("no panic");
            assert!(same.len() >= 2050, "it is the same map");
        }
        assert_eq!(counts.len(), 50 + 4 * 2000);
        for n in 0..50 {
            assert_eq!(counts.get(&format!("word {n}")).unwrap(), Some(160));
        }
    });
}

#[test]
fn threads_share_a_handle() {
    let _guard = guard(60);
    let map = SharedMap::<String, u64>::new().unwrap();
    std::thread::scope(|scope| {
        for own in 0..4u64 {
            let map = &map;
            scope.spawn(move || {
                for n in 0..3000 {
                    map.update("all", |sum| Some(sum.unwrap_or(0) + 1)).unwrap();
                    map.insert(&format!("{own} {n}"), &n).unwrap();
                    assert_eq!(map.get(&format!("{own} {}", n / 2)).unwrap(), Some(n / 2));
                }
            });
        }
    });
    assert_eq!(map.get("all").unwrap(), Some(12_000));
    assert_eq!(map.len(), 12_001);
}

#[test]
fn readers_see_whole_values_while_entries_move() {
    support::each_method(|method| {
        let map = SharedMap::<u32, Vec<u64>>::new().unwrap();
        let done = SharedMap::<u8, ()>::new().unwrap();
        for key in 0..20 {
            map.insert(&key, &vec![0; 8]).unwrap();
        }
        let read = |map: SharedMap<u32, Vec<u64>>, done: SharedMap<u8, ()>| {
            let mut looks = 0u64;
            let mut before = [0; 20];
            while !done.contains_key(&1).unwrap() {
                for key in 0..20 {
                    let value = map.get(&key).unwrap().expect("it is always there");
                    assert!(value.iter().all(|n| *n == value[0]), "{value:?}");
                    assert!(value[0] >= before[key as usize], "time goes on");
                    before[key as usize] = value[0];
                    looks += 1;
                }
            }
            looks
        };
        let start = || {
            let child = Process::builder().start_method(method);
            child.start(read, (map.clone(), done.clone())).unwrap()
        };
        let readers = [start(), start()];
        for round in 1..=3000u64 {
            for key in 0..20 {
                map.insert(&key, &vec![round; 8 + (round % 7) as usize])
                    .unwrap();
            }
        }
        done.insert(&1, &()).unwrap();
        for reader in readers {
            assert!(reader.result().expect("no panic") > 0);
        }
    });
}

#[test]
fn another_type_of_map_is_refused() {
    let _guard = guard(60);
    let (here, there) = bunshin::pipe::<SharedMap<u32, u32>>().unwrap();
    let child = Process::builder().start_method(StartMethod::Spawn).start(
        |end: bunshin::Connection<SharedMap<u32, u32>>| end.recv().is_ok(),
        (there,),
    );
    here.send(SharedMap::new().unwrap()).unwrap();
    assert!(child.unwrap().result().unwrap());
    // The arguments say what they are: a map of text does not arrive as one of numbers.
    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Numbers(SharedMap<u32, u32>),
        Text(SharedMap<String, String>),
    }
    let text = SharedMap::<String, String>::new().unwrap();
    text.insert("a", &"b".to_owned()).unwrap();
    let child = Process::start(
        |either: Either| matches!(either, Either::Numbers(_)),
        (Either::Text(text),),
    );
    assert!(
        !child.unwrap().result().unwrap(),
        "it was taken for numbers"
    );
}

#[test]
fn a_fork_within_a_change_does_not_change_twice() {
    let _guard = guard(60);
    let scenario = || {
        let map = SharedMap::<u32, u32>::new().unwrap();
        map.insert(&1, &1).unwrap();
        let mut child = None;
        let changed = map.update(&1, |_| match fork().unwrap() {
            Fork::Child => Some(100),
            Fork::Parent(process) => {
                child = Some(process);
                Some(2)
            }
        });
        match child {
            None => {
                let is_refused = changed.is_err_and(|error| error.kind() == ErrorKind::Busy);
                std::process::exit(i32::from(!is_refused));
            }
            Some(process) => {
                assert!(process.join().unwrap().success());
                assert_eq!(changed.unwrap(), Some(2));
                assert_eq!(map.insert(&1, &3).unwrap(), Some(2));
            }
        }
    };
    let child = Process::builder().start_method(StartMethod::Spawn);
    child
        .start(scenario, ())
        .unwrap()
        .result()
        .expect("no panic");
}

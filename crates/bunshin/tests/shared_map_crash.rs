//! Processes killed or stopped in the middle of whatever they do to a shared map.

mod support;

use std::time::Duration;

use bunshin::{Process, SharedMap};
use rustix::process::Signal;
use support::wait_until;

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

/// What a writer last finished, by its number; and entries that say of themselves if they are whole.
type Map = SharedMap<u64, (u64, Vec<u64>)>;

fn entry(n: u64) -> (u64, Vec<u64>) {
    (n, vec![n; (n % 40) as usize])
}

fn is_whole(entry: &(u64, Vec<u64>)) -> bool {
    *entry == self::entry(entry.0)
}

/// Writes for ever; every change is noted in `done` after it was made.
fn write(map: Map, done: SharedMap<u64, u64>, own: u64) {
    let base = own * 1_000_000;
    for n in 0.. {
        let key = base + n % 500;
        match n % 5 {
            0..=2 => drop(map.insert(&key, &entry(n)).unwrap()),
            3 => drop(map.update(&key, |_| Some(entry(n))).unwrap()),
            _ => drop(map.remove(&key).unwrap()),
        }
        done.insert(&own, &n).unwrap();
        if n % 10_000 == 9_999 {
            let mut own = map
                .iter()
                .filter(|e| e.as_ref().is_ok_and(|(key, _)| *key >= base));
            assert!(own.all(|entry| is_whole(&entry.unwrap().1)));
        }
    }
}

/// What a key of a writer holds once it has done all up to `done`.
fn expected(key: u64, done: u64) -> Option<(u64, Vec<u64>)> {
    let last = done.checked_sub((done + 500 - key) % 500)?;
    (last % 5 != 4).then(|| entry(last))
}

#[test]
fn killed_writers_lose_at_most_what_they_were_doing() {
    support::each_method(|method| {
        let map = Map::new().unwrap();
        let done = SharedMap::<u64, u64>::new().unwrap();
        // Entries of nobody that gets killed.
        let fixed = 50_000_000;
        for n in 0..200 {
            map.insert(&(fixed + n), &entry(n)).unwrap();
        }
        for round in 1..=12u64 {
            let writers = [2 * round, 2 * round + 1].map(|own| {
                let child = Process::builder().start_method(method);
                let arguments = (map.clone(), done.clone(), own);
                (own, child.start(write, arguments).unwrap())
            });
            for (own, _) in &writers {
                assert!(wait_until(LONG, || done.contains_key(own).unwrap()));
            }
            std::thread::sleep(Duration::from_micros(round * 7919 % 20_000));
            for (_, child) in &writers {
                support::kill(child.pid(), Signal::KILL);
            }
            for (own, child) in writers {
                child.join().unwrap();
                let last = done.get(&own).unwrap().expect("it had begun");
                for key in 0..500 {
                    let found = map.get(&(own * 1_000_000 + key)).unwrap();
                    // The change after the last one that was noted may have been made or not.
                    let (before, after) = (expected(key, last), expected(key, last + 1));
                    assert!(
                        found == before || found == after,
                        "round {round}, key {key}: {found:?}, not {before:?} or {after:?}"
                    );
                }
                // The others' locks and memory are as good as new.
                for key in 0..500 {
                    map.remove(&(own * 1_000_000 + key)).unwrap();
                }
            }
            for n in 0..200 {
                assert_eq!(map.get(&(fixed + n)).unwrap(), Some(entry(n)));
            }
            assert_eq!(map.len(), 200);
            assert_eq!(map.iter().count(), 200);
        }
    });
}

#[test]
fn a_process_killed_within_an_update_changes_nothing() {
    support::each_method(|method| {
        let map = SharedMap::<String, u32>::new().unwrap();
        map.insert("a", &1).unwrap();
        for round in 0..10 {
            let work = |map: SharedMap<String, u32>| {
                let kill = |_| -> Option<u32> {
                    support::kill(std::process::id(), Signal::KILL);
                    unreachable!("it was killed");
                };
                drop(map.update("a", kill));
            };
            let child = Process::builder().start_method(method);
            let child = child.start(work, (map.clone(),)).unwrap();
            assert!(!child.join().unwrap().success());
            assert_eq!(map.get("a").unwrap(), Some(1 + round));
            let next = map.update("a", |n| n.map(|n| n + 1)).unwrap();
            assert_eq!((next, map.len()), (Some(2 + round), 1));
        }
    });
}

#[test]
fn readers_do_not_wait_for_a_stopped_writer() {
    support::each_method(|method| {
        let map = SharedMap::<u32, u32>::new().unwrap();
        for n in 0..1000 {
            map.insert(&n, &n).unwrap();
        }
        let flag = SharedMap::<u32, u32>::new().unwrap();
        let stop_within = |map: SharedMap<u32, u32>, flag: SharedMap<u32, u32>| {
            let update = map.update(&7, |n| {
                flag.insert(&1, &1).unwrap();
                support::kill(std::process::id(), Signal::STOP);
                n.map(|n| n + 1)
            });
            update.unwrap()
        };
        let child = Process::builder().start_method(method);
        let child = child
            .start(stop_within, (map.clone(), flag.clone()))
            .unwrap();
        assert!(wait_until(LONG, || {
            flag.contains_key(&1).unwrap()
                && support::ProcessState::of(child.pid()).is_some_and(|p| p.state == 'T')
        }));
        for n in 0..1000 {
            assert_eq!(map.get(&n).unwrap(), Some(n));
        }
        support::kill(child.pid(), Signal::CONT);
        assert_eq!(child.result().unwrap(), Some(8));
        assert_eq!(map.get(&7).unwrap(), Some(8));
    });
}

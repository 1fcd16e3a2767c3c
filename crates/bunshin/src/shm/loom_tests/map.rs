//! The map: readers see whole values while entries move, and a killed writer loses nothing of
//! what others did.

use std::sync::Arc;

use loom::thread;

use super::super::map::{Key, Map};
use super::super::system;
use super::explore;

fn with_key<R>(key: u8, work: impl FnOnce(&Key<'_>) -> R) -> R {
    work(&Key {
        hash: u64::from(key) << 32 | u64::from(key),
        bytes: &[key],
        is_same: &|_| Ok(false),
    })
}

/// Two words that are equal, so that halves of two values are not.
fn put(map: &Map, key: u8, n: u64) {
    let value = [n.to_ne_bytes(), n.to_ne_bytes()].concat();
    with_key(key, |key| map.lock(key.hash).unwrap().put(key, &value)).unwrap();
}

fn get(map: &Map, key: u8) -> Option<u64> {
    let mut value = Vec::new();
    let found = with_key(key, |key| map.get(key, &mut value)).unwrap();
    let halves: Vec<u64> = value
        .chunks(8)
        .map(|half| u64::from_ne_bytes(half.try_into().expect("whole words")))
        .collect();
    found.then(|| {
        assert_eq!(halves.len(), 2);
        assert_eq!(halves[0], halves[1], "a value in two halves");
        halves[0]
    })
}

/// A map whose region has no room left for another value.
fn full() -> Arc<Map> {
    let map = Arc::new(Map::create((1, 2)).unwrap());
    system::run(3, None, || (0..4).for_each(|n| put(&map, 1, n)));
    map
}

/// The region is left for another one, and taken again for a third.
#[test]
fn loom_map_is_read_while_entries_move() {
    explore(2, || {
        let map = full();
        let writer = Arc::clone(&map);
        let writer = thread::spawn(move || {
            system::run(1, None, || (4..9).for_each(|n| put(&writer, 1, n)));
        });
        system::run(2, None, || {
            let first = get(&map, 1).expect("it is always there");
            let second = get(&map, 1).expect("it is always there");
            assert!((3..9).contains(&first) && (first..9).contains(&second));
        });
        writer.join().unwrap();
        assert_eq!(system::run(2, None, || get(&map, 1)), Some(Some(8)));
    });
}

#[test]
fn loom_map_outlives_a_writer() {
    for kill_at in 0..40 {
        explore(1, move || {
            let map = full();
            let dying = Arc::clone(&map);
            let dying = thread::spawn(move || {
                let work = || {
                    put(&dying, 1, 4);
                    put(&dying, 2, 5);
                };
                if system::run(1, Some(kill_at), work).is_none() {
                    dying.thread_ended();
                }
            });
            system::run(2, None, || {
                let seen = get(&map, 1);
                assert!(matches!(seen, Some(3 | 4)), "{seen:?}");
                put(&map, 3, 7);
            });
            dying.join().unwrap();
            system::run(2, None, || {
                put(&map, 3, 8);
                let (first, second) = (get(&map, 1), get(&map, 2));
                assert!(matches!(first, Some(3 | 4)), "{first:?}");
                assert!(matches!(second, None | Some(5)), "{second:?}");
                assert!(first == Some(4) || second.is_none(), "in order");
                assert_eq!(get(&map, 3), Some(8));
                assert_eq!(map.len(), 2 + usize::from(second.is_some()));
                assert_eq!(map.extents_in_use(), 1, "no memory is lost");
            });
        });
    }
}

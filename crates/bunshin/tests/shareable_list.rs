//! The list of fixed length: its items, its bytes, and CPython on the other side.

mod support;

use std::process::Command;

use bunshin::{ErrorKind, ListItem, Process, ShareableList, SharedMemory};

/// The fixture's guard, for when what a process makes once is there already.
fn guard(seconds: u64) -> support::Guard {
    support::guard_after(seconds, support::start_each_way_once)
}

fn python(program: &str, name: &str) -> String {
    let output = Command::new("python3")
        .args(["-c", program, name])
        .output()
        .expect("python3 can be started");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn items() -> Vec<ListItem> {
    vec![
        1.into(),
        i64::MIN.into(),
        (-2.5).into(),
        true.into(),
        false.into(),
        ().into(),
        "h\u{e9}llo".into(),
        "12345678".into(),
        "".into(),
        (&b"abc"[..]).into(),
        vec![0xff; 100].into(),
    ]
}

#[test]
fn items_come_back_as_they_are_under_every_start_method() {
    support::each_method(|method| {
        let list = ShareableList::new(items()).unwrap();
        let work = |list: ShareableList| {
            assert_eq!(list.to_vec().unwrap(), items());
            for position in 0..list.len() {
                list.set(position, 7 + position as i64).unwrap();
            }
            list.set(7, "sixteen bytes, x").unwrap();
            list.set(0, Some("eight by")).unwrap();
            list
        };
        let child = Process::builder().start_method(method);
        let back = child
            .start(work, (list.clone(),))
            .unwrap()
            .result()
            .unwrap();
        assert_eq!(list.get(0).unwrap(), "eight by".into());
        assert_eq!(list.get(3).unwrap(), ListItem::Int(10));
        assert_eq!(list.get(7).unwrap(), "sixteen bytes, x".into());
        back.set(5, ()).unwrap();
        assert_eq!(list.get(5).unwrap(), ListItem::None);
        assert_eq!(
            (list.count(10).unwrap(), list.position(()).unwrap()),
            (1, Some(5))
        );
        assert_eq!(list.position("nowhere").unwrap(), None);
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let _guard = guard(30);
    let list = ShareableList::new(["abc"]).unwrap();
    for (position, text) in [(0, "nine byte"), (1, "a"), (usize::MAX, "a")] {
        let error = list.set(position, text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(list.get(1).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(list.to_vec().unwrap(), ["abc".into()]);
    let error = ShareableList::new([vec![1; 10_000_000]]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let empty = ShareableList::new::<i64>([]).unwrap();
    assert!(empty.is_empty() && empty.iter().next().is_none());
}

/// Reads a list in Python without letting its tracker take the name for its own.
const ATTACH: &str = "
import sys
from multiprocessing import resource_tracker, shared_memory
items = shared_memory.ShareableList(name=sys.argv[1])
if sys.version_info < (3, 13):
    resource_tracker.unregister(items.shm._name, 'shared_memory')
";

#[test]
fn python_opens_ours() {
    let _guard = guard(60);
    let name = format!("bunshin-list-{}", std::process::id());
    let list = ShareableList::create(&name, items()).unwrap();
    let program = format!(
        "{ATTACH}
print(list(items))
items[0] = 'new'
items[6] = None
items[9] = b'12345678'
items[3] = 0.5
items.shm.close()
"
    );
    let printed = python(&program, &name);
    let expected = format!(
        "[1, {}, -2.5, True, False, None, 'h\u{e9}llo', '12345678', '', b'abc', b'{}']\n",
        i64::MIN,
        "\\xff".repeat(100)
    );
    assert_eq!(printed, expected);
    assert_eq!(list.get(0).unwrap(), "new".into());
    assert_eq!(list.get(6).unwrap(), ListItem::None);
    assert_eq!(list.get(9).unwrap(), ListItem::Bytes(b"12345678".to_vec()));
    assert_eq!(list.get(3).unwrap(), 0.5.into());
}

#[test]
fn we_open_pythons() {
    let _guard = guard(60);
    let name = format!("bunshin-pylist-{}", std::process::id());
    python(
        "
import sys
from multiprocessing import resource_tracker, shared_memory
items = shared_memory.ShareableList([1, -2**63, 0.25, True, None, 'h\u{e9}', b'\\xff', 'x' * 20], name=sys.argv[1])
resource_tracker.unregister(items.shm._name, 'shared_memory')
",
        &name,
    );
    let list = ShareableList::open(&name).unwrap();
    let expected: Vec<ListItem> = vec![
        1.into(),
        i64::MIN.into(),
        0.25.into(),
        true.into(),
        ().into(),
        "h\u{e9}".into(),
        vec![0xff].into(),
        "x".repeat(20).into(),
    ];
    assert_eq!(list.to_vec().unwrap(), expected);
    list.set(0, "text").unwrap();
    list.set(7, "y".repeat(24)).unwrap();
    list.set(4, false).unwrap();
    let program = format!("{ATTACH}\nprint(list(items))\nitems.shm.close()\n");
    let printed = python(&program, &name);
    assert_eq!(
        printed,
        format!(
            "['text', {}, 0.25, True, False, 'h\u{e9}', b'\\xff', '{}']\n",
            i64::MIN,
            "y".repeat(24)
        )
    );
    list.memory().unlink().unwrap();
}

#[test]
fn nonsense_in_the_memory_is_an_error_at_most() {
    let _guard = guard(60);
    let name = format!("bunshin-badlist-{}", std::process::id());
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let list = ShareableList::create(&name, items()).unwrap();
    let sound = list.memory().to_vec().unwrap();
    let (mut opened, mut refused, mut bad) = (0, 0, 0);
    for _ in 0..5000 {
        let mut bytes = sound.clone();
        for _ in 0..=random(6) {
            let at = random(bytes.len() as u64) as usize;
            bytes[at] =
                [0, 0xff, random(256) as u8, bytes[at] ^ 1 << random(8)][random(4) as usize];
        }
        list.memory().write_at(0, &bytes).unwrap();
        match ShareableList::open(&name) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                refused += 1;
            }
            Ok(list) => {
                opened += 1;
                bad += list.iter().filter(Result::is_err).count();
                for position in 0..list.len() {
                    list.set(position, position as i64).unwrap();
                    assert_eq!(list.get(position).unwrap(), ListItem::Int(position as i64));
                }
            }
        }
    }
    assert!(
        opened > 100 && refused > 100 && bad > 100,
        "{opened} {refused} {bad}"
    );
    // Too short for any list, and as long as one word.
    for len in [1, 8, 15, 16] {
        let name = format!("{name}-short");
        let memory = SharedMemory::create(&name, len).unwrap();
        assert_eq!(ShareableList::open(&name).is_ok(), len == 16);
        drop(memory);
    }
}

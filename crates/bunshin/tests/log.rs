//! Events of children arrive in the parent, under every start method, whatever becomes of
//! the child.
#![cfg(feature = "tracing")]

mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bunshin::{Context, ErrorKind, StartMethod, current_process, log};
use support::{each_method, start, wait_until};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber, debug, error, info, info_span, trace, warn};
use tracing_subscriber::layer::{Context as Of, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(20);

/// An event that has arrived.
#[derive(Clone, Debug)]
struct Seen {
    level: Level,
    target: String,
    file: Option<String>,
    line: Option<u32>,
    fields: BTreeMap<String, String>,
}

impl Seen {
    fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    fn message(&self) -> &str {
        self.get("message")
    }
}

static SEEN: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
/// While set, the subscriber does not get on.
static HOLD: AtomicBool = AtomicBool::new(false);

fn seen() -> MutexGuard<'static, Vec<Seen>> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what has arrived.
fn taken() -> Vec<Seen> {
    std::mem::take(&mut *seen())
}

struct Collect;

impl<S: Subscriber> Layer<S> for Collect {
    fn on_event(&self, event: &Event<'_>, _of: Of<'_, S>) {
        while HOLD.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        struct Fields(BTreeMap<String, String>);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                let twice = self.0.insert(field.name().to_owned(), format!("{value:?}"));
                assert!(twice.is_none(), "{} twice", field.name());
            }
        }
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        let metadata = event.metadata();
        seen().push(Seen {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            file: metadata.file().map(str::to_owned),
            line: metadata.line(),
            fields: fields.0,
        });
    }
}

/// Collects events of this process up to that level.
fn collect(level: LevelFilter) {
    tracing_subscriber::registry()
        .with(level)
        .with(Collect)
        .init();
}

#[test]
fn events_arrive_as_what_they_were() {
    each_method(|method| {
        collect(LevelFilter::INFO);
        let records = log::forward().unwrap();
        let work = || {
            let outer = info_span!(
                "outer",
                job = 7,
                name = "a b",
                later = tracing::field::Empty
            );
            let line = line!() + 1;
            outer.in_scope(|| info!("within the outer span"));
            let _outer = outer.enter();
            outer.record("later", true);
            let _inner = info_span!("inner").entered();
            warn!(target: "special", int = -3, uint = 3u64, float = 0.5, yes = true, text = "words",
                shown = ?Some(1), process = "mine", wide = u128::MAX, "a message with {}", "an argument");
            error!(parent: None, "of no span");
            debug!("not wanted");
            trace!("not wanted either");
            assert!(!tracing::enabled!(Level::DEBUG));
            line
        };
        let child = start(method, work, ());
        let (name, pid) = (child.name().to_owned(), child.pid().to_string());
        let line = child.result().unwrap();
        records.flush();
        let events = taken();
        assert_eq!(events.len(), 3, "{events:#?}");
        for event in &events {
            assert_eq!(
                (event.get("process"), event.get("pid")),
                (&*format!("{name:?}"), &*pid)
            );
            assert!(!event.fields.contains_key("task"));
            assert!(
                event
                    .file
                    .as_deref()
                    .is_some_and(|file| file.ends_with("log.rs"))
            );
        }
        let [first, second, third] = &events[..] else {
            unreachable!()
        };
        assert_eq!((first.level, first.line), (Level::INFO, Some(line)));
        assert_eq!(first.message(), "within the outer span");
        assert_eq!(first.get("spans"), "outer{job=7 name=\"a b\"}");
        assert_eq!(first.target, module_path!());
        assert_eq!(
            (second.level, second.target.as_str()),
            (Level::WARN, "special")
        );
        assert_eq!(second.message(), "a message with an argument");
        let fields = [
            "int",
            "uint",
            "float",
            "yes",
            "text",
            "shown",
            "original.process",
        ];
        let values = fields.map(|name| second.get(name).to_owned());
        assert_eq!(
            values,
            ["-3", "3", "0.5", "true", "\"words\"", "Some(1)", "\"mine\""]
        );
        assert_eq!(second.get("wide"), u128::MAX.to_string());
        assert_eq!(
            second.get("spans"),
            "outer{job=7 name=\"a b\"}{later=true}:inner"
        );
        assert_eq!((third.level, third.get("spans")), (Level::ERROR, ""));
        assert_eq!(records.lost(), 0);
    });
}

#[test]
fn they_arrive_by_themselves() {
    each_method(|method| {
        collect(LevelFilter::TRACE);
        let records = log::forward().unwrap();
        let child = start(method, || trace!("here"), ());
        assert!(wait_until(LONG, || seen().len() == 1), "nobody flushes");
        child.join().unwrap();
        // The thread that reads stands in no fork's way.
        let forked = start(StartMethod::Fork, || debug!("there"), ());
        assert!(wait_until(LONG, || seen().len() == 2));
        forked.join().unwrap();
        // Nor in that of a scope.
        let text = "borrowed".to_owned();
        bunshin::scope(|scope| {
            scope
                .spawn(|| info!(text, "elsewhere"))
                .unwrap()
                .join()
                .unwrap()
        });
        drop(records);
        let last = taken().pop().unwrap();
        assert_eq!(
            (last.get("process"), last.get("text")),
            ("\"Scope-1\"", "\"borrowed\"")
        );
    });
}

#[test]
fn tasks_of_a_pool_say_which_they_are() {
    each_method(|method| {
        collect(LevelFilter::INFO);
        let records = log::forward().unwrap();
        let pool = Context::new(method).pool(2).unwrap();
        let task = |number: u32| {
            info!(number, "working");
            assert!(number != 3, "no threes");
        };
        let results = pool.map_each(task, 0..6);
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
        records.flush();
        let events = taken();
        let (panics, others): (Vec<_>, Vec<_>) = events
            .into_iter()
            .partition(|event| event.target == "panic");
        let mut tasks: Vec<_> = others
            .iter()
            .map(|event| (event.get("number").to_owned(), event.get("task").to_owned()))
            .collect();
        tasks.sort();
        let expected: Vec<_> = (0..6)
            .map(|n| (n.to_string(), (n + 1).to_string()))
            .collect();
        assert_eq!(tasks, expected);
        assert_eq!(panics.len(), 1);
        let panic = &panics[0];
        assert_eq!((panic.level, panic.message()), (Level::ERROR, "no threes"));
        assert_eq!(panic.get("task"), "4");
        assert!(panic.get("process").starts_with("\"Worker-"));
        assert!(
            panic
                .file
                .as_deref()
                .is_some_and(|file| file.ends_with("log.rs"))
        );
    });
}

#[test]
fn events_of_grandchildren_and_of_threads_reach_the_top() {
    each_method(|method| {
        collect(LevelFilter::INFO);
        let records = log::forward().unwrap();
        let nested = |method: StartMethod, depth: u32| {
            let own = || (current_process().name().to_owned(), std::process::id());
            info!(depth, "here");
            // Not under a parent that has threads, as its own children may be forked.
            let deeper = |method: StartMethod| {
                let (name, pid) = (current_process().name().to_owned(), std::process::id());
                info!(depth = 2, "here");
                if method != StartMethod::Fork {
                    thread::spawn(|| info!("in a thread")).join().unwrap();
                }
                (name, pid)
            };
            // Asking for what is there already changes nothing.
            let again = log::forward().expect("it goes up");
            let child = start(method, deeper, (method,)).result().unwrap();
            drop(again);
            info!(depth, "still here");
            (own(), child)
        };
        let (child, grandchild) = start(method, nested, (method, 1)).result().unwrap();
        records.flush();
        let events = taken();
        let from = |event: &Seen| (event.get("process").to_owned(), event.get("pid").to_owned());
        let is = |(name, pid): &(String, u32)| (format!("{name:?}"), pid.to_string());
        let mut origins = events.iter().map(from);
        assert_eq!(origins.next(), Some(is(&child)), "{events:#?}");
        assert_eq!(origins.next(), Some(is(&grandchild)));
        if method != StartMethod::Fork {
            assert_eq!(events[2].message(), "in a thread");
            assert_eq!(origins.next(), Some(is(&grandchild)));
        }
        assert_eq!(origins.next(), Some(is(&child)), "{events:#?}");
        assert_eq!(origins.next(), None);
    });
}

#[test]
fn a_panic_arrives_and_so_does_what_a_killed_child_has_said() {
    each_method(|method| {
        collect(LevelFilter::INFO);
        let records = log::forward().unwrap();
        let child = start(method, || -> u8 { panic!("out of luck") }, ());
        assert!(child.result().is_err());
        records.flush();
        let events = taken();
        assert_eq!(events.len(), 1, "{events:#?}");
        assert_eq!(
            (events[0].message(), &*events[0].target),
            ("out of luck", "panic")
        );
        assert_eq!(events[0].level, Level::ERROR);
        let last_words = |round: u32| {
            info!(round, "the last words");
            support::kill(std::process::id(), rustix::process::Signal::KILL);
        };
        for round in 0..30 {
            let child = start(method, last_words, (round,));
            assert_eq!(child.join().unwrap().signal(), Some(9));
            records.flush();
            let events = taken();
            assert_eq!(events.len(), 1, "in round {round}: {events:#?}");
            assert_eq!(events[0].get("round"), round.to_string());
        }
        // Killed at any moment while it talks: what arrives is whole, in order, without gaps.
        for round in 0..10 {
            let talk = || (0u64..1 << 40).for_each(|number| info!(number, "talking {number}"));
            let child = start(method, talk, ());
            thread::sleep(Duration::from_millis(2 * round));
            child.kill().unwrap();
            child.join().unwrap();
            records.flush();
            let mut next = 0;
            for event in taken()
                .iter()
                .filter(|event| event.target != "bunshin::log")
            {
                let number: u64 = event.get("number").parse().unwrap();
                assert!(number >= next, "in order");
                assert_eq!(event.message(), format!("talking {number}"));
                next = number + 1;
            }
        }
    });
}

#[test]
fn a_parent_that_does_not_read_holds_nobody_up() {
    each_method(|method| {
        const EVENTS: usize = 30_000;
        collect(LevelFilter::INFO);
        let records = log::forward().unwrap();
        HOLD.store(true, Ordering::Relaxed);
        let talk = || {
            // In a forked child this is a copy, and of no use.
            HOLD.store(false, Ordering::Relaxed);
            for number in 0..EVENTS {
                info!(number, "talking");
            }
        };
        // A second fork would wait for the reader, which is held up.
        let count = if method == StartMethod::Fork { 1 } else { 2 };
        let children: Vec<_> = (0..count).map(|_| start(method, talk, ())).collect();
        let since = Instant::now();
        for child in children {
            let ended = child.join_timeout(LONG).unwrap();
            assert!(
                ended.is_some_and(|status| status.success()),
                "{:?}",
                since.elapsed()
            );
        }
        HOLD.store(false, Ordering::Relaxed);
        records.flush();
        let (about, events): (Vec<_>, Vec<_>) = taken()
            .into_iter()
            .partition(|event| event.target == "bunshin::log");
        let told: u64 = about
            .iter()
            .map(|event| event.get("lost").parse::<u64>().unwrap())
            .sum();
        assert_eq!(told, records.lost());
        assert!(about.iter().all(|event| event.level == Level::WARN));
        assert!(told > 0, "the pipe cannot hold them all");
        assert_eq!(events.len() + told as usize, count * EVENTS);
        assert!(!events.is_empty());
    });
}

#[test]
fn who_does_not_look_gets_nothing() {
    each_method(|method| {
        // A subscriber, and nobody who has asked for children's events.
        let is_wanted = || tracing::enabled!(Level::ERROR);
        if method != StartMethod::Fork {
            collect(LevelFilter::INFO);
            assert!(!start(method, is_wanted, ()).result().unwrap());
            let records = log::forward().unwrap();
            assert!(start(method, is_wanted, ()).result().unwrap());
            let error = log::forward().expect_err("there is one");
            assert_eq!(error.kind(), ErrorKind::Busy);
            // Who runs on while nobody reads any more is not disturbed.
            let talk = || {
                for number in 0..50_000 {
                    info!(number, "talking");
                }
            };
            let child = start(method, talk, ());
            drop(records);
            let arrived = taken().len();
            assert!(
                child
                    .join_timeout(LONG)
                    .unwrap()
                    .is_some_and(|status| status.success())
            );
            assert_eq!(taken().len(), 0, "after {arrived}");
            assert!(!start(method, is_wanted, ()).result().unwrap());
            let _records = log::forward().expect("there is none");
        } else {
            // No subscriber at all.
            let _records = log::forward().unwrap();
            assert!(!start(method, is_wanted, ()).result().unwrap());
        }
    });
}

/// Shows itself without an end.
struct Endless;

impl fmt::Debug for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        loop {
            f.write_str("ü and more ")?;
        }
    }
}

#[test]
fn long_events_are_cut() {
    each_method(|method| {
        collect(LevelFilter::INFO);
        let records = log::forward().unwrap();
        let work = || {
            let _span = info_span!("wide", endless = ?Endless).entered();
            let long = "日本".repeat(100_000);
            info!(endless = ?Endless, after = 1, "a");
            info!(long, "b");
            info!("{long}");
        };
        start(method, work, ()).result().unwrap();
        records.flush();
        let events = taken();
        assert_eq!(events.len(), 3, "{events:#?}");
        assert!(events[0].get("endless").starts_with("ü and more ü"));
        assert!(events[1].get("long").starts_with("\"日本日本"));
        assert!(events[2].message().starts_with("日本日本"));
        for event in events {
            assert!(event.get("spans").starts_with("wide{endless=ü and"));
            assert!(event.fields.values().map(String::len).sum::<usize>() < 4096);
        }
    });
}

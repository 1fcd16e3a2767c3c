//! What is measured: the rows, who takes part in each, and the goals.
//!
//! A new peer in a row is one line in its `entries`, here or in `entries.rs`; a new row is one
//! `Row`.

use std::time::Duration;

use crate::entries::{
    ASYNC, BARRIERS, Entry, MAP_CHANGED, MAP_SUM, MEMORIES, QUEUE_LINK, SMALL_ROUND_TRIP, STARTS,
    STREAMS, TCP, THROUGHPUT, WAKE_UPS, ours, peer,
};
use crate::peers::{
    bare, bunshin, bunshin_queue, bunshin_sync, cpython, cpython_pool, crossmist, iceoryx2,
    ipc_channel, manager, parking_lot, posix, procspawn, rayon, records, ring, shared_memory,
    smaller, threads,
};
use crate::workload::{Pattern, Work};

/// What a row's numbers are. Measurements are in seconds an item throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds; less is better.
    Micros,
    /// Milliseconds; less is better.
    Millis,
    /// Millions of items a second; more is better.
    MillionsPerSecond,
    /// GiB a second for items of `size_bytes`; more is better.
    GibPerSecond,
}

/// What one of our entries should reach, in the row's unit.
pub struct Goal {
    pub entry: &'static str,
    pub limit: Limit,
}

pub enum Limit {
    /// No worse than this number.
    Number(f64),
    /// No worse than so many times what that peer has in this row.
    Times(f64, &'static str),
    /// No worse than so many times what that peer has in another row.
    TimesInRow(f64, &'static str, &'static str),
}

pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: Unit,
    pub work: Work,
    pub time_limit: Duration,
    pub entries: &'static [Entry],
    pub goals: &'static [Goal],
}

const fn goal(entry: &'static str, limit: Limit) -> Goal {
    Goal { entry, limit }
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const GIB: usize = 1024 * MIB;

const SHORT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);

const fn round_trip(size_bytes: usize) -> Work {
    Work {
        pattern: Pattern::RoundTrip,
        size_bytes,
        ..Work::NONE
    }
}

const fn one_way(size_bytes: usize) -> Work {
    Work {
        pattern: Pattern::OneWay,
        size_bytes,
        ..Work::NONE
    }
}

const fn arrays(changed: bool, cold: bool) -> Work {
    Work {
        size_bytes: 8 * MIB,
        n_arrays: 64,
        changed,
        cold,
        ..Work::NONE
    }
}

const WAKE_UP_GOALS: &[Goal] = &[
    goal(
        "bunshin Condition",
        Limit::Times(1.1, "pthread_cond, robust"),
    ),
    goal("bunshin Event", Limit::Times(1.1, "pthread_cond, robust")),
    goal("bunshin Semaphore", Limit::Times(1.1, "sem_t")),
];

const BARRIER_GOALS: &[Goal] = &[goal(
    "bunshin Barrier",
    Limit::Times(1.1, "pthread_barrier"),
)];

pub const ROWS: &[Row] = &[
    Row {
        name: "round-trip-8",
        title: "Round trip of 8 bytes, each process on a core of its own",
        unit: Unit::Micros,
        work: round_trip(8),
        time_limit: SHORT,
        entries: SMALL_ROUND_TRIP,
        goals: &[goal("bunshin", Limit::Number(1.0))],
    },
    Row {
        name: "round-trip-8-one-core",
        title: "Round trip of 8 bytes, both processes on one core",
        unit: Unit::Micros,
        work: Work {
            one_core: true,
            ..round_trip(8)
        },
        time_limit: SHORT,
        entries: SMALL_ROUND_TRIP,
        goals: &[goal("bunshin", Limit::Times(1.0, "pipe"))],
    },
    Row {
        name: "round-trip-64k",
        title: "Round trip of 64 KiB, each process on a core of its own",
        unit: Unit::Micros,
        work: round_trip(64 * KIB),
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin::bytes),
            ours("bunshin Buffer", bunshin::buffers),
            peer("iceoryx2 polling", iceoryx2::bytes_polling),
            peer("iceoryx2 event", iceoryx2::bytes_event),
            peer("pipe", bare::pipe),
            peer("socketpair", bare::socketpair),
            peer("ipc-channel bytes", ipc_channel::bytes),
            peer("ipc-channel shared", ipc_channel::shared_memory),
            peer("crossmist", crossmist::bytes),
            peer("procspawn pool call", procspawn::round_trip),
            peer("bare ring, spinning", ring::spinning),
        ],
        goals: &[],
    },
    Row {
        name: "one-way-64-bytes",
        title: "One way, 64 bytes, as raw bytes",
        unit: Unit::MillionsPerSecond,
        work: one_way(64),
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin::bytes),
            peer("iceoryx2 polling", iceoryx2::bytes_polling),
            peer("iceoryx2 event", iceoryx2::bytes_event),
            peer("pipe", bare::pipe),
            peer("socketpair", bare::socketpair),
            peer("ipc-channel bytes", ipc_channel::bytes),
            peer("crossmist", crossmist::bytes),
            peer("bare ring, spinning", ring::spinning),
        ],
        goals: &[goal("bunshin", Limit::Number(10.0))],
    },
    Row {
        name: "one-way-64-struct",
        title: "One way, 64 bytes, as a struct of nine fields",
        unit: Unit::MillionsPerSecond,
        work: one_way(64),
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin::quotes),
            peer("iceoryx2 polling", iceoryx2::quotes_polling),
            peer("iceoryx2 event", iceoryx2::quotes_event),
            peer("ipc-channel serde", ipc_channel::quotes),
            peer("crossmist", crossmist::quotes),
        ],
        goals: &[goal("bunshin", Limit::Number(5.0))],
    },
    Row {
        name: "throughput-64k",
        title: "One way, messages of 64 KiB",
        unit: Unit::GibPerSecond,
        work: one_way(64 * KIB),
        time_limit: SHORT,
        entries: THROUGHPUT,
        goals: &[goal("bunshin", Limit::Number(7.0))],
    },
    Row {
        name: "throughput-16m",
        title: "One way, messages of 16 MiB",
        unit: Unit::GibPerSecond,
        work: one_way(16 * MIB),
        time_limit: SHORT,
        entries: THROUGHPUT,
        goals: &[goal("bunshin", Limit::Times(1.0 / 0.85, "memcpy"))],
    },
    Row {
        name: "start",
        title: "Start to first result, reaped, from a small parent",
        unit: Unit::Micros,
        work: Work::NONE,
        time_limit: SHORT,
        entries: STARTS,
        goals: &[
            goal("bunshin fork", Limit::Times(1.2, "bare fork")),
            goal("bunshin forkserver", Limit::Times(1.5, "bare fork")),
            goal("bunshin spawn", Limit::Times(1.2, "bare exec")),
        ],
    },
    Row {
        name: "start-1g",
        title: "Start to first result, reaped, from a parent with a heap of 1 GiB",
        unit: Unit::Micros,
        work: Work {
            heap_bytes: GIB,
            ..Work::NONE
        },
        time_limit: LONG,
        entries: STARTS,
        goals: &[
            // "Not slower" needs room for noise between two rows.
            goal(
                "bunshin forkserver",
                Limit::TimesInRow(1.1, "start", "bunshin forkserver"),
            ),
            goal("bunshin spawn", Limit::Times(1.2, "bare exec")),
        ],
    },
    Row {
        name: "pool-chunk-1",
        title: "Trivial tasks, two workers, each task handed out by itself",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin::pool_many),
            peer("procspawn, 32 in flight", procspawn::pool_many),
            peer("socketpairs, 32 in flight", bare::pool_many),
            peer("bare ring, 32 in flight", ring::pool_many),
            peer("rayon (threads)", rayon::pool_many),
        ],
        goals: &[goal("bunshin", Limit::Number(1.0))],
    },
    Row {
        name: "pool-one",
        title: "Trivial tasks, two workers, each waits for the one before",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin::pool_one),
            peer("procspawn", procspawn::pool_one),
            peer("socketpairs", bare::pool_one),
            peer("bare ring, yielding", ring::pool_one),
            peer("rayon (threads)", rayon::pool_one),
        ],
        goals: &[goal("bunshin", Limit::Number(0.1))],
    },
    Row {
        name: "map-sum",
        title: "Map over 64 arrays of 8 MiB, two workers: their sums",
        unit: Unit::Millis,
        work: arrays(false, false),
        time_limit: LONG,
        entries: MAP_SUM,
        goals: &[goal("bunshin", Limit::Times(1.5, "memcpy"))],
    },
    Row {
        name: "map-sum-first",
        title: "The same, the first map of a fresh pool",
        unit: Unit::Millis,
        work: arrays(false, true),
        time_limit: LONG,
        entries: MAP_SUM,
        goals: &[],
    },
    Row {
        name: "map-changed",
        title: "Map over 64 arrays of 8 MiB, two workers: each comes back changed",
        unit: Unit::Millis,
        work: arrays(true, false),
        time_limit: LONG,
        entries: MAP_CHANGED,
        goals: &[
            goal("bunshin", Limit::Times(1.5, "memcpy there and back")),
            goal("bunshin", Limit::Times(1.5, "memcpy there")),
        ],
    },
    Row {
        name: "map-changed-first",
        title: "The same, the first map of a fresh pool",
        unit: Unit::Millis,
        work: arrays(true, true),
        time_limit: LONG,
        entries: MAP_CHANGED,
        goals: &[],
    },
    Row {
        name: "shared-map-get",
        title: "Shared map of 10,000 numbers: get",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", shared_memory::map_get),
            peer("Mutex<HashMap> (threads)", shared_memory::mutex_get),
            peer("dashmap (threads)", shared_memory::dashmap_get),
            peer("CPython Manager().dict()", shared_memory::manager_get),
        ],
        goals: &[goal("bunshin", Limit::Number(5.0))],
    },
    Row {
        name: "shared-map-get-two",
        title: "The same by two readers at a time, both counted",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", shared_memory::map_get_by_two),
            peer("dashmap (threads)", shared_memory::dashmap_get_by_two),
        ],
        goals: &[goal(
            "bunshin",
            Limit::TimesInRow(1.0 / 1.5, "shared-map-get", "bunshin"),
        )],
    },
    Row {
        name: "shared-map-get-text",
        title: "Shared map of 10,000 short strings: get",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", shared_memory::map_get_text),
            peer("dashmap (threads)", shared_memory::dashmap_get_text),
        ],
        goals: &[goal("bunshin", Limit::Number(5.0))],
    },
    Row {
        name: "shared-map-insert",
        title: "Shared map of 10,000 numbers: insert over an entry",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", shared_memory::map_insert),
            peer("Mutex<HashMap> (threads)", shared_memory::mutex_insert),
            peer("dashmap (threads)", shared_memory::dashmap_insert),
            peer("CPython Manager().dict()", shared_memory::manager_insert),
        ],
        goals: &[],
    },
    Row {
        name: "shareable-list-get",
        title: "Shareable list of 1,000 numbers: get",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", smaller::list_get),
            peer("CPython ShareableList", smaller::cpython_list_get),
        ],
        goals: &[],
    },
    Row {
        name: "shared-memory-64k",
        title: "Shared memory of 64 KiB: made, mapped, each page written, let go of",
        unit: Unit::Micros,
        work: Work {
            size_bytes: 64 * KIB,
            ..Work::NONE
        },
        time_limit: SHORT,
        entries: MEMORIES,
        goals: &[],
    },
    Row {
        name: "shared-memory-16m",
        title: "The same, of 16 MiB",
        unit: Unit::Micros,
        work: Work {
            size_bytes: 16 * MIB,
            ..Work::NONE
        },
        time_limit: SHORT,
        entries: MEMORIES,
        goals: &[],
    },
    Row {
        name: "lock-pair",
        title: "Lock and unlock, where nobody else wants the lock",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin Lock", bunshin_sync::lock_pair),
            ours("bunshin RLock", bunshin_sync::rlock_pair),
            ours("bunshin Semaphore", bunshin_sync::semaphore_pair),
            peer("pthread robust", posix::robust_pair),
            peer("pthread shared", posix::plain_pair),
            peer("sem_t", posix::semaphore_pair),
            peer("parking_lot (threads)", parking_lot::pair),
        ],
        goals: &[
            // "Not slower", with room for noise.
            goal("bunshin Lock", Limit::Times(1.05, "pthread robust")),
        ],
    },
    Row {
        name: "lock-contended",
        title: "Lock and unlock, where two processes want the lock all the time",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin Lock", bunshin_sync::lock_contended),
            ours("bunshin Semaphore", bunshin_sync::semaphore_contended),
            peer("pthread robust", posix::robust_contended),
            peer("sem_t", posix::semaphore_contended),
            peer("parking_lot (threads)", parking_lot::contended),
        ],
        goals: &[goal("bunshin Lock", Limit::Times(1.05, "pthread robust"))],
    },
    Row {
        name: "wake-up",
        title: "A signal and its answer, each process on a core of its own",
        unit: Unit::Micros,
        work: Work::NONE,
        time_limit: SHORT,
        entries: WAKE_UPS,
        goals: WAKE_UP_GOALS,
    },
    Row {
        name: "wake-up-one-core",
        title: "A signal and its answer, both processes on one core",
        unit: Unit::Micros,
        work: Work {
            one_core: true,
            ..Work::NONE
        },
        time_limit: SHORT,
        entries: WAKE_UPS,
        goals: WAKE_UP_GOALS,
    },
    Row {
        name: "barrier",
        title: "Two processes meet at a barrier, each on a core of its own",
        unit: Unit::Micros,
        work: Work::NONE,
        time_limit: SHORT,
        entries: BARRIERS,
        goals: BARRIER_GOALS,
    },
    Row {
        name: "barrier-one-core",
        title: "Two processes meet at a barrier, both on one core",
        unit: Unit::Micros,
        work: Work {
            one_core: true,
            ..Work::NONE
        },
        time_limit: SHORT,
        entries: BARRIERS,
        goals: BARRIER_GOALS,
    },
    Row {
        name: "pool-burst",
        title: "Trivial tasks, two workers, all begun by apply_async before any is waited for",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin::pool_burst),
            ours("bunshin ThreadPool", bunshin::threads_burst),
            peer("procspawn, 32 in flight", procspawn::pool_many),
            peer("CPython Pool", cpython_pool::burst),
            peer("rayon (threads)", rayon::pool_burst),
        ],
        goals: &[goal("bunshin", Limit::Number(0.5))],
    },
    Row {
        name: "pool-imap",
        title: "Trivial tasks, two workers, results taken one by one from imap",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin::pool_imap),
            ours("bunshin ThreadPool", bunshin::threads_imap),
            peer("procspawn, 32 in flight", procspawn::pool_many),
            peer("CPython Pool", cpython_pool::imap),
            peer("rayon (threads), a map", rayon::pool_many),
        ],
        goals: &[goal("bunshin", Limit::Number(1.0))],
    },
    Row {
        name: "pool-apply",
        title: "A trivial call by apply, two idle workers",
        unit: Unit::Micros,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin::pool_apply),
            ours("bunshin ThreadPool", bunshin::threads_apply),
            peer("procspawn", procspawn::pool_one),
            peer("CPython Pool", cpython_pool::one),
            peer("rayon (threads)", rayon::pool_one),
        ],
        goals: &[goal("bunshin", Limit::Number(10.0))],
    },
    Row {
        name: "par-map",
        title: "A map over 64 borrowed items of about 0.1 ms, two workers: each item",
        unit: Unit::Micros,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin par_map (forks)", smaller::par_map),
            peer("rayon (threads)", smaller::rayon_map),
            peer("one after the other", smaller::serial_map),
        ],
        goals: &[],
    },
    Row {
        name: "thread-pool",
        title: "Trivial tasks in a pool of two threads, each with a handle of its own",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin ThreadPool", smaller::thread_pool_burst),
            ours("bunshin ThreadPool, imap", smaller::thread_pool_imap),
            peer("rayon (threads)", rayon::pool_burst),
        ],
        goals: &[],
    },
    Row {
        name: "records",
        title: "Events of a child that its parent gets, each",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin log::forward", records::forwarded),
            peer("lines over a pipe", records::lines),
        ],
        goals: &[],
    },
    Row {
        name: "round-trip-async-8",
        title: "Round trip of 8 bytes between async code, each process on a core of its own",
        unit: Unit::Micros,
        work: round_trip(8),
        time_limit: SHORT,
        entries: ASYNC,
        goals: &[goal("bunshin tokio", Limit::Times(1.0, "tokio UnixStream"))],
    },
    Row {
        name: "one-way-async-8",
        title: "One way between async code, messages of 8 bytes",
        unit: Unit::MillionsPerSecond,
        work: one_way(8),
        time_limit: SHORT,
        entries: ASYNC,
        goals: &[goal("bunshin tokio", Limit::Times(1.0, "tokio UnixStream"))],
    },
    Row {
        name: "round-trip-stream-8",
        title: "Round trip of 8 bytes over a Unix socket, each process on a core of its own",
        unit: Unit::Micros,
        work: round_trip(8),
        time_limit: SHORT,
        entries: STREAMS,
        goals: &[goal("bunshin stream", Limit::Times(1.2, "socketpair"))],
    },
    Row {
        name: "throughput-stream-64k",
        title: "One way over a Unix socket, messages of 64 KiB",
        unit: Unit::GibPerSecond,
        work: one_way(64 * KIB),
        time_limit: SHORT,
        entries: STREAMS,
        goals: &[goal("bunshin stream", Limit::Times(1.2, "socketpair"))],
    },
    Row {
        name: "round-trip-tcp-8",
        title: "Round trip of 8 bytes over TCP on loopback, each process on a core of its own",
        unit: Unit::Micros,
        work: round_trip(8),
        time_limit: SHORT,
        entries: TCP,
        goals: &[goal("bunshin TCP", Limit::Times(1.2, "TCP socket"))],
    },
    Row {
        name: "throughput-tcp-64k",
        title: "One way over TCP on loopback, messages of 64 KiB",
        unit: Unit::GibPerSecond,
        work: one_way(64 * KIB),
        time_limit: SHORT,
        entries: TCP,
        goals: &[goal("bunshin TCP", Limit::Times(1.2, "TCP socket"))],
    },
    Row {
        name: "manager-get-1",
        title: "A manager's dict, read by one process",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", manager::bunshin_one),
            peer("CPython", manager::cpython_one),
        ],
        goals: &[goal("bunshin", Limit::Number(0.3))],
    },
    Row {
        name: "manager-get-remote",
        title: "A manager's dict over TCP on loopback, read by one process",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", manager::bunshin_remote),
            peer("CPython", manager::cpython_remote),
        ],
        goals: &[goal("bunshin", Limit::Times(1.0, "CPython"))],
    },
    Row {
        name: "manager-get-4",
        title: "A manager's dict, read by four processes",
        unit: Unit::MillionsPerSecond,
        work: Work::NONE,
        time_limit: SHORT,
        entries: &[
            ours("bunshin", manager::bunshin_four),
            peer("CPython", manager::cpython_four),
        ],
        goals: &[goal("bunshin", Limit::Number(0.6))],
    },
    Row {
        name: "queue-round-trip",
        title: "Queues of 8 bytes: there through one, and back through another",
        unit: Unit::Micros,
        work: round_trip(8),
        time_limit: SHORT,
        entries: QUEUE_LINK,
        goals: &[goal("bunshin", Limit::Number(2.0))],
    },
    Row {
        name: "queue-1-1",
        title: "Queue of 8 bytes, one producer, one consumer",
        unit: Unit::MillionsPerSecond,
        work: one_way(8),
        time_limit: SHORT,
        entries: QUEUE_LINK,
        goals: &[goal("bunshin", Limit::Number(5.0))],
    },
    Row {
        name: "queue-4-4",
        title: "Queue of 8 bytes, four producers, four consumers, on any core",
        unit: Unit::MillionsPerSecond,
        work: one_way(8),
        time_limit: SHORT,
        entries: &[
            ours("bunshin", bunshin_queue::each),
            peer("CPython Queue", cpython::queue_each),
            peer("crossbeam (threads)", threads::crossbeam_each),
            peer("flume (threads)", threads::flume_each),
        ],
        goals: &[goal("bunshin", Limit::Number(3.0))],
    },
];

impl Unit {
    /// A measurement in this unit.
    pub fn of(self, seconds: f64, work: &Work) -> f64 {
        match self {
            Unit::Micros => seconds * 1e6,
            Unit::Millis => seconds * 1e3,
            Unit::MillionsPerSecond => 1e-6 / seconds,
            Unit::GibPerSecond => work.size_bytes as f64 / GIB as f64 / seconds,
        }
    }

    pub fn more_is_better(self) -> bool {
        matches!(self, Unit::MillionsPerSecond | Unit::GibPerSecond)
    }

    /// What stands over the numbers.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Micros => "µs",
            Unit::Millis => "ms",
            Unit::MillionsPerSecond => "M/s",
            Unit::GibPerSecond => "GiB/s",
        }
    }
}

/// The row of that name.
pub fn row(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

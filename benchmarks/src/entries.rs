//! Who takes part in rows that have the same peers.

use crate::measure::Result;
use crate::peers::{
    asynchronous, bare, bunshin, bunshin_queue, bunshin_sync, cpython, crossmist, iceoryx2,
    ipc_channel, memcpy, parking_lot, posix, procspawn, python, rayon, ring, shared_memory, stream,
    threads,
};
use crate::workload::Work;

/// One peer in one row.
pub struct Entry {
    pub peer: &'static str,
    /// One of ours: the others are compared with it.
    pub ours: bool,
    pub run: fn(&Work) -> Result<f64>,
}

pub const fn ours(peer: &'static str, run: fn(&Work) -> Result<f64>) -> Entry {
    Entry {
        peer,
        ours: true,
        run,
    }
}

pub const fn peer(peer: &'static str, run: fn(&Work) -> Result<f64>) -> Entry {
    Entry {
        peer,
        ours: false,
        run,
    }
}

pub const SMALL_ROUND_TRIP: &[Entry] = &[
    ours("bunshin", bunshin::numbers),
    ours("bunshin bytes", bunshin::bytes),
    peer("iceoryx2 polling", iceoryx2::bytes_polling),
    peer("iceoryx2 event", iceoryx2::bytes_event),
    peer("pipe", bare::pipe),
    peer("socketpair", bare::socketpair),
    peer("ipc-channel bytes", ipc_channel::bytes),
    peer("ipc-channel serde", ipc_channel::numbers),
    peer("crossmist", crossmist::bytes),
    peer("procspawn pool call", procspawn::round_trip),
    peer("bare ring, spinning", ring::spinning),
    peer("bare ring, yielding", ring::yielding),
];

pub const THROUGHPUT: &[Entry] = &[
    ours("bunshin", bunshin::bytes),
    ours("bunshin Buffer", bunshin::buffers),
    peer("memcpy", memcpy::message),
    peer("iceoryx2 polling", iceoryx2::bytes_polling),
    peer("iceoryx2 event", iceoryx2::bytes_event),
    peer("pipe", bare::pipe),
    peer("socketpair", bare::socketpair),
    peer("ipc-channel bytes", ipc_channel::bytes),
    peer("ipc-channel shared", ipc_channel::shared_memory),
    peer("crossmist", crossmist::bytes),
    peer("bare ring, spinning", ring::spinning),
];

pub const STREAMS: &[Entry] = &[
    ours("bunshin stream", stream::bytes),
    peer("socketpair", bare::socketpair),
    peer("CPython Connection", python::connection),
];

pub const TCP: &[Entry] = &[
    ours("bunshin TCP", stream::tcp),
    ours("bunshin TLS", stream::under_tls),
    peer("TCP socket", bare::tcp),
];

pub const ASYNC: &[Entry] = &[
    ours("bunshin tokio", asynchronous::bunshin),
    peer("tokio UnixStream", asynchronous::sockets),
];

pub const QUEUE_LINK: &[Entry] = &[
    ours("bunshin", bunshin_queue::queue),
    ours("bunshin SimpleQueue", bunshin_queue::simple),
    ours("bunshin JoinableQueue", bunshin_queue::joinable),
    ours("bunshin pipe", bunshin::numbers),
    peer("ipc-channel serde", ipc_channel::numbers),
    peer("CPython Queue", cpython::queue),
    peer("crossbeam (threads)", threads::crossbeam),
    peer("flume (threads)", threads::flume),
];

pub const STARTS: &[Entry] = &[
    ours("bunshin fork", bunshin::fork_start),
    ours("bunshin forkserver", bunshin::forkserver_start),
    ours("bunshin spawn", bunshin::spawn_start),
    peer("bare fork", bare::fork_start),
    peer("bare exec", bare::exec_start),
    peer("procspawn", procspawn::spawn_start),
    peer("crossmist", crossmist::run_start),
    peer("ipc-channel one-shot", ipc_channel::one_shot_start),
];

pub const MEMORIES: &[Entry] = &[
    ours("bunshin", shared_memory::memory),
    ours("bunshin, named", shared_memory::named_memory),
    peer("shm_open, ftruncate, mmap", shared_memory::bare_named),
];

pub const MAP_SUM: &[Entry] = &[
    ours("bunshin", bunshin::map_sum),
    peer("memcpy", memcpy::once),
    peer("procspawn shared", procspawn::map_sum),
    peer("ipc-channel shared", ipc_channel::map_sum),
    peer("bare ring, yielding", ring::map_sum),
    peer("rayon (threads)", rayon::map_sum),
];

pub const MAP_CHANGED: &[Entry] = &[
    ours("bunshin", bunshin::map_changed),
    peer("memcpy there", memcpy::once),
    peer("memcpy there and back", memcpy::there_and_back),
    peer("procspawn shared", procspawn::map_changed),
    peer("ipc-channel shared", ipc_channel::map_changed),
    peer("bare ring, yielding", ring::map_changed),
    peer("rayon (threads)", rayon::map_changed),
];

pub const WAKE_UPS: &[Entry] = &[
    ours("bunshin Condition", bunshin_sync::condition_round_trip),
    ours("bunshin Event", bunshin_sync::event_round_trip),
    ours("bunshin Semaphore", bunshin_sync::semaphore_round_trip),
    peer("pthread_cond, robust", posix::condition_round_trip),
    peer("sem_t", posix::semaphore_round_trip),
    peer("parking_lot (threads)", parking_lot::round_trip),
];

pub const BARRIERS: &[Entry] = &[
    ours("bunshin Barrier", bunshin_sync::barrier_meetings),
    peer("pthread_barrier", posix::barrier_meetings),
    peer("std (threads)", threads::barrier_meetings),
];

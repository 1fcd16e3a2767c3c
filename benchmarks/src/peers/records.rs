//! Events of a child, counted in the parent: forwarded by Bunshin, or as lines over a pipe.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ::bunshin::{Process, Receiver, channel};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::measure::{self, Result};
use crate::workload::{Work, link};

/// Events in one go: fewer than the pipe of the records holds, so that none is dropped.
const LOT: u64 = 512;
/// The most lots in one batch.
const BATCH: u64 = 1 << 16;

static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// Counts events, and does nothing else with them.
struct Counter;

impl Subscriber for Counter {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        ARRIVED.fetch_add(1, Ordering::Release);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn chatter(lots: Receiver<u64>) {
    while let Ok(lot) = lots.recv() {
        for number in 0..LOT {
            tracing::info!(number, lot, "working");
        }
    }
}

/// Seconds an event, from the child's `info!` to the parent's subscriber.
pub fn forwarded(work: &Work) -> Result<f64> {
    tracing::subscriber::set_global_default(Counter)?;
    let records = ::bunshin::log::forward()?;
    let (go, lots) = channel()?;
    let child = Process::start(chatter, (lots,))?;
    let seconds = measure::seconds_each(work.budget, BATCH, |n_lots| {
        for lot in 0..n_lots {
            let goal = ARRIVED.load(Ordering::Acquire) + LOT;
            go.send(lot)?;
            while ARRIVED.load(Ordering::Acquire) < goal {
                if records.lost() != 0 {
                    return Err("events were dropped".into());
                }
                thread::yield_now();
            }
        }
        Ok(())
    })?;
    drop(go);
    child.join()?;
    Ok(seconds / LOT as f64)
}

/// What ends the writer of lines.
const END: u64 = u64::MAX;

fn write_lines(mut lots: PipeReader, mut lines: PipeWriter) -> io::Result<()> {
    let mut lot = [0; 8];
    loop {
        lots.read_exact(&mut lot)?;
        let lot = u64::from_ne_bytes(lot);
        if lot == END {
            return Ok(());
        }
        for number in 0..LOT {
            let line = format!("INFO records: working number={number} lot={lot}\n");
            // In one call, as a logger does that is not to lose its last lines.
            lines.write_all(line.as_bytes())?;
        }
    }
}

/// The same as text, a line for each event, written at once and read line by line.
pub fn lines(work: &Work) -> Result<f64> {
    let (lots, mut go) = io::pipe()?;
    let (reader, writer) = io::pipe()?;
    let child = link::fork_into(|| Ok(write_lines(lots, writer)?))?;
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    let seconds = measure::seconds_each(work.budget, BATCH, |n_lots| {
        for lot in 0..n_lots {
            go.write_all(&lot.to_ne_bytes())?;
            for number in 0..LOT {
                line.clear();
                reader.read_line(&mut line)?;
                if !line.ends_with(&format!("number={number} lot={lot}\n")) {
                    return Err("a line is wrong".into());
                }
            }
        }
        Ok(())
    })?;
    go.write_all(&END.to_ne_bytes())?;
    link::reap(child)?;
    Ok(seconds / LOT as f64)
}

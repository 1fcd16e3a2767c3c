//! crossmist: channels and one-shot functions in a child that is this binary.
//!
//! Version 1.1.2 tells plain data from other data by whether the standard library
//! clones an array by copying it; on current compilers that answer has changed and
//! the first value sent panics. The rows stay, so that a repaired version shows.

use crossmist::Duplex;

use crate::measure::{self, Result};
use crate::workload::link::{self, Bytes, Link, Quote, TypedLink, Values};
use crate::workload::{Work, start};

/// Bytes as `Vec<u8>`, the only form there is.
impl Link for Duplex<Vec<u8>, Vec<u8>> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(Duplex::send(self, &message.to_vec())?)
    }

    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.recv()?.ok_or("the other end is gone")?))
    }
}

/// What a child needs to know to serve.
type Order = (usize, usize, u8);

fn order(work: &Work) -> Result<Order> {
    let (_, far_core) = work.cores()?;
    let pattern = u8::from(work.pattern == crate::workload::Pattern::OneWay);
    Ok((far_core, work.reply_bytes(), pattern))
}

fn serve(port: &mut impl link::Port, core: usize, pattern: u8) {
    let pattern = if pattern == 0 {
        crate::workload::Pattern::RoundTrip
    } else {
        crate::workload::Pattern::OneWay
    };
    measure::pin(core).expect("pin");
    link::serve(port, pattern).expect("serve");
}

#[crossmist::func]
fn serve_bytes(end: Duplex<Vec<u8>, Vec<u8>>, order: Order) {
    serve(&mut Bytes::new(end, order.1), order.0, order.2);
}

pub fn bytes(work: &Work) -> Result<f64> {
    let (near, far) = crossmist::duplex()?;
    let child = serve_bytes.spawn(far, order(work)?)?;
    measure::pin(work.cores()?.0)?;
    let seconds = link::drive(&mut Bytes::new(near, work.size_bytes), work)?;
    child.join()?;
    Ok(seconds)
}

/// A quote as the tuple of its fields: tuples need no derive.
type Fields = (u64, u64, f64, f64, f64, f64, u64, u32, u32);

impl TypedLink<Quote> for Duplex<Fields, Fields> {
    fn send(&mut self, q: Quote) -> Result<()> {
        let fields = (
            q.header,
            q.instrument,
            q.bid,
            q.ask,
            q.bid_size,
            q.ask_size,
            q.time,
            q.venue,
            q.flags,
        );
        Ok(Duplex::send(self, &fields)?)
    }

    fn receive(&mut self) -> Result<Quote> {
        let fields = self.recv()?.ok_or("the other end is gone")?;
        let (header, instrument, bid, ask, bid_size, ask_size, time, venue, flags) = fields;
        Ok(Quote {
            header,
            instrument,
            bid,
            ask,
            bid_size,
            ask_size,
            time,
            venue,
            flags,
        })
    }
}

#[crossmist::func]
fn serve_quotes(end: Duplex<Fields, Fields>, order: Order) {
    serve(&mut Values::<_, Quote>::new(end), order.0, order.2);
}

pub fn quotes(work: &Work) -> Result<f64> {
    let (near, far) = crossmist::duplex()?;
    let child = serve_quotes.spawn(far, order(work)?)?;
    measure::pin(work.cores()?.0)?;
    let seconds = link::drive(&mut Values::<_, Quote>::new(near), work)?;
    child.join()?;
    Ok(seconds)
}

#[crossmist::func]
fn answer(question: u64) -> u64 {
    start::answer(question)
}

pub fn run_start(work: &Work) -> Result<f64> {
    start::start_to_result(work, |question| Ok(answer.run(question)?))
}

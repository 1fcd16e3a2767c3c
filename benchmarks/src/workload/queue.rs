//! Many producers and many consumers on one queue: the same work for every peer.
//!
//! The measuring process orders each producer to put so many numbers into the queue, and waits
//! until all have. Then it puts marks behind the numbers: a consumer that takes one reports
//! how many numbers it took since its last report, and their sum. Together they must be
//! what was ordered, so a peer that loses or repeats an item fails.

use super::Work;
use crate::measure::{self, Result};

/// Producers, and consumers.
pub const N_EACH: u64 = 4;

/// Not a number to be counted: take what you have and report.
const MARK: u64 = u64::MAX;
/// Not an order or a number: end.
const STOP: u64 = u64::MAX - 1;
/// Not a report of a consumer: a producer has carried out its order.
const PRODUCED: u64 = u64::MAX;

/// A queue of numbers, as one process or thread has it.
pub trait Numbers {
    fn send(&self, number: u64) -> Result<()>;
    fn receive(&self) -> Result<u64>;
}

/// Carries out orders.
pub fn produce(items: &impl Numbers, orders: &impl Numbers, reports: &impl Numbers) -> Result<()> {
    loop {
        match orders.receive()? {
            STOP => return Ok(()),
            n_items => {
                for number in 0..n_items {
                    items.send(number)?;
                }
                reports.send(PRODUCED)?;
            }
        }
    }
}

/// Counts and adds up.
pub fn consume(items: &impl Numbers, reports: &impl Numbers) -> Result<()> {
    let (mut count, mut sum) = (0u64, 0u32);
    loop {
        match items.receive()? {
            STOP => return Ok(()),
            MARK => {
                reports.send(count << 32 | u64::from(sum))?;
                (count, sum) = (0, 0);
            }
            number => {
                count += 1;
                sum = sum.wrapping_add(number as u32);
            }
        }
    }
}

/// The measuring side: returns seconds an item. Everybody else runs already.
pub fn drive(
    work: &Work,
    items: &impl Numbers,
    orders: &impl Numbers,
    reports: &impl Numbers,
) -> Result<f64> {
    let batch = |n_items: u64| -> Result<()> {
        let (mut ordered, mut sum) = (0, 0u32);
        for producer in 0..N_EACH {
            let order = n_items / N_EACH + u64::from(producer < n_items % N_EACH);
            orders.send(order)?;
            ordered += order;
            let total = order * order.saturating_sub(1) / 2;
            sum = sum.wrapping_add(total as u32);
        }
        let (mut count, mut found) = (0, 0u32);
        let mut n_producing = N_EACH;
        while n_producing > 0 || count < ordered {
            if n_producing == 0 {
                items.send(MARK)?;
            }
            match reports.receive()? {
                PRODUCED => n_producing -= 1,
                report => {
                    count += report >> 32;
                    found = found.wrapping_add(report as u32);
                }
            }
        }
        if (count, found) != (ordered, sum) {
            return Err(format!("{ordered} items of sum {sum}, {count} of {found} came").into());
        }
        Ok(())
    };
    let seconds = measure::seconds_each(work.budget, 1 << 30, batch)?;
    for _ in 0..N_EACH {
        orders.send(STOP)?;
        items.send(STOP)?;
    }
    Ok(seconds)
}

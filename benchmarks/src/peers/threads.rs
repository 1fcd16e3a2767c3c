//! Between threads: the channels of `crossbeam-channel` and `flume`, and `std`'s barrier. They share
//! memory, copy no item to another process, and cannot be killed: the ceiling.

use std::sync::Barrier;
use std::thread;

use crate::measure::{self, Result};
use crate::workload::Work;
use crate::workload::link::{self, TypedLink, Values};
use crate::workload::locks::{self, Far, Meets};
use crate::workload::queue::{self, N_EACH, Numbers};

/// Two ends of the same kind of channel, of one thread.
struct End<S, R> {
    sender: S,
    receiver: R,
}

macro_rules! channel {
    ($link:ident, $each:ident, $krate:ident) => {
        impl TypedLink<u64> for End<$krate::Sender<u64>, $krate::Receiver<u64>> {
            fn send(&mut self, message: u64) -> Result<()> {
                Ok(self.sender.send(message)?)
            }

            fn receive(&mut self) -> Result<u64> {
                Ok(self.receiver.recv()?)
            }
        }

        impl Numbers for ($krate::Sender<u64>, $krate::Receiver<u64>) {
            fn send(&self, number: u64) -> Result<()> {
                Ok(self.0.send(number)?)
            }

            fn receive(&self) -> Result<u64> {
                Ok(self.1.recv()?)
            }
        }

        /// One thread to one other.
        pub fn $link(work: &Work) -> Result<f64> {
            let (near_sender, far_receiver) = $krate::unbounded();
            let (far_sender, near_receiver) = $krate::unbounded();
            let near = End {
                sender: near_sender,
                receiver: near_receiver,
            };
            let far = End {
                sender: far_sender,
                receiver: far_receiver,
            };
            linked(work, near, far)
        }

        /// Four threads to four others.
        pub fn $each(work: &Work) -> Result<f64> {
            let [items, orders, reports] = [(); 3].map(|()| $krate::unbounded());
            shared(work, items, orders, reports)
        }
    };
}
channel!(crossbeam, crossbeam_each, crossbeam_channel);
channel!(flume, flume_each, flume);

fn linked<L: TypedLink<u64> + Send>(work: &Work, near: L, far: L) -> Result<f64> {
    let (near_core, far_core) = work.cores()?;
    thread::scope(|scope| {
        let far = scope.spawn(move || {
            measure::pin(far_core)?;
            link::serve(&mut Values::new(far), work.pattern)
        });
        measure::pin(near_core)?;
        let seconds = link::drive(&mut Values::new(near), work)?;
        far.join().map_err(|_| "the other thread panicked")??;
        Ok(seconds)
    })
}

fn shared<N: Numbers + Clone + Send>(work: &Work, items: N, orders: N, reports: N) -> Result<f64> {
    thread::scope(|scope| {
        for _ in 0..N_EACH {
            let own = (items.clone(), orders.clone(), reports.clone());
            scope.spawn(move || queue::produce(&own.0, &own.1, &own.2));
            let own = (items.clone(), reports.clone());
            scope.spawn(move || queue::consume(&own.0, &own.1));
        }
        queue::drive(work, &items, &orders, &reports)
    })
}

impl Meets for Barrier {
    fn meet(&self) -> Result<()> {
        self.wait();
        Ok(())
    }
}

/// Two threads at a barrier.
pub fn barrier_meetings(work: &Work) -> Result<f64> {
    locks::meetings(work, Far::Thread, Barrier::new(2))
}

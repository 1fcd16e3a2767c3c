//! The protocols of this folder, under every interleaving that loom finds; see `ci/loom`.
//!
//! Each test plays both sides with the code that runs in earnest. What is a socket there
//! is a [`Socket`] here: a count of bytes. A lost wake-up ends in a deadlock, which loom
//! reports; a look at data that its writer has not finished with is an access to a cell of
//! loom's that it reports as well.

use loom::sync::{Condvar, Mutex, MutexGuard};

mod barrier;
mod condition;
mod event;
mod heap;
mod lock;
mod map;
mod owned;
mod queue;
mod reentrant;
mod ring;
mod semaphore;
mod table;

/// Explores `test`, with so many preemptions at most unless the environment says.
fn explore(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(preemptions);
    model.check(test);
}

/// Bytes without a meaning, as bells are.
#[derive(Default)]
struct Socket {
    bytes: Mutex<usize>,
    came: Condvar,
}

impl Socket {
    fn ring(&self) {
        *self.bytes.lock().unwrap() += 1;
        self.came.notify_all();
    }

    /// Waits for bytes, and takes all that there are.
    fn read(&self) -> usize {
        std::mem::take(&mut *self.wait())
    }

    /// Waits for bytes, and takes one.
    fn read_one(&self) {
        *self.wait() -= 1;
    }

    fn wait_for_some(&self) {
        drop(self.wait());
    }

    fn has_some(&self) -> bool {
        *self.bytes.lock().unwrap() > 0
    }

    fn wait(&self) -> MutexGuard<'_, usize> {
        let mut bytes = self.bytes.lock().unwrap();
        while *bytes == 0 {
            bytes = self.came.wait(bytes).unwrap();
        }
        bytes
    }
}

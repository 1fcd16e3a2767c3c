//! Waiting for room in a bounded queue.
//!
//! Room has no descriptor: who sends waits at a word in shared memory, for the kernel to wake
//! it, also when a consumer is killed right after it has made room. So one thread of the
//! runtime's waits there, for all tasks that want to send by one handle, and wakes them. It
//! only waits: a task that is woken tries to send, and comes back if others were quicker.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::tokio::task;

use crate::error::Result;
use crate::queue::Untyped;
use crate::transport::Patience;

/// How long the thread waits before it looks whether anybody still wants to send.
const SLICE: Duration = Duration::from_millis(200);

/// The tasks that wait by one handle.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    has_thread: bool,
    /// How often all that waited were told to try again.
    round: u64,
    tasks: BTreeMap<u64, Waker>,
    next_task: u64,
}

/// One that waits.
struct Ticket<'a> {
    waiting: &'a Arc<Waiting>,
    number: u64,
    round: u64,
}

/// The thread's part: whatever becomes of it, those that wait are told.
struct Duty(Arc<Waiting>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is worth another attempt to send.
    pub(super) async fn for_room(self: &Arc<Self>, queue: &Arc<Untyped>) -> Result<()> {
        let ticket = {
            let mut state = self.lock();
            state.next_task += 1;
            Ticket {
                waiting: self,
                number: state.next_task,
                round: state.round,
            }
        };
        poll_fn(|context| ticket.poll(context, queue)).await;
        // Why the thread could not wait, if it could not: or else this would go on for ever.
        queue.wait_for_room(Patience::Never).map(drop)
    }
}

impl Ticket<'_> {
    fn poll(&self, context: &Context<'_>, queue: &Arc<Untyped>) -> Poll<()> {
        let mut state = self.waiting.lock();
        if state.round != self.round {
            return Poll::Ready(());
        }
        state.tasks.insert(self.number, context.waker().clone());
        if !mem::replace(&mut state.has_thread, true) {
            let duty = Duty(Arc::clone(self.waiting));
            let queue = Arc::clone(queue);
            // Dropped at once where the runtime ends, and takes the lock then.
            drop(state);
            drop(task::spawn_blocking(move || duty.wait(&queue)));
        }
        Poll::Pending
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.waiting.lock().tasks.remove(&self.number);
    }
}

impl Duty {
    fn wait(&self, queue: &Untyped) {
        while matches!(queue.wait_for_room(Patience::within(SLICE)), Ok(false)) {
            if self.0.lock().tasks.is_empty() {
                return;
            }
        }
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_thread = false;
        state.round += 1;
        let tasks = mem::take(&mut state.tasks);
        drop(state);
        tasks.into_values().for_each(Waker::wake);
    }
}

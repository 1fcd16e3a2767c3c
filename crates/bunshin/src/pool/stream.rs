//! Mapping lazily in `async` code.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::imap::{Imap, Step};
use crate::process::TaskError;

/// Results that are given in a row before others of the same thread have a turn.
const IN_A_ROW: u32 = 128;
/// Times that the pool is looked at again at once.
const LOOKS: u32 = 4;

/// The results of an [`Imap`] as a [`Stream`].
///
/// As with the iterator, items are taken as results are asked for, a window of them ahead: an
/// endless iterator of items will do, memory stays as it is, and a slow consumer holds the
/// items back. A future of its next result that is dropped has taken nothing. Dropping the
/// stream cancels the tasks that have not begun, and takes no more items.
///
/// The items are taken, and results decoded, by whoever polls: an iterator that waits makes the
/// runtime's thread wait. In between, the thread `bunshin-pool` looks after the pool.
///
/// # Errors
/// As [`TaskFuture`](crate::TaskFuture), each result by itself.
///
/// # Examples
/// ```
/// use bunshin::{Pool, StartMethod};
/// use futures_core::Stream;
/// use std::{future::poll_fn, pin::Pin};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # runtime.block_on(async {
/// let pool = Pool::builder().workers(2).start_method(StartMethod::Spawn).build()?;
/// let mut squares = pool.imap(|n: u64| n * n, 1..).into_stream();
/// let mut sum = 0;
/// while sum < 30 {
///     // `next` of `StreamExt` does this.
///     let square = poll_fn(|context| Pin::new(&mut squares).poll_next(context)).await;
///     sum += square.expect("they are endless")?;
/// }
/// assert_eq!(sum, 1 + 4 + 9 + 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a stream does nothing until it is asked"]
pub struct ImapStream<I: Iterator, R> {
    imap: Imap<I, R>,
    /// Results since others had a turn.
    in_a_row: u32,
    /// How many were out when it was found that there is nothing yet.
    before: Option<usize>,
}

// Nothing in it is looked at in place.
impl<I: Iterator, R> Unpin for ImapStream<I, R> {}

impl<I: Iterator, R> Imap<I, R>
where
    I::Item: Serialize,
    R: DeserializeOwned,
{
    /// The same results as a [`Stream`], for `async` code.
    ///
    /// # Examples
    /// See [`ImapStream`].
    pub fn into_stream(self) -> ImapStream<I, R> {
        ImapStream {
            imap: self,
            in_a_row: 0,
            before: None,
        }
    }
}

impl<I: Iterator, R> ImapStream<I, R>
where
    I::Item: Serialize,
    R: DeserializeOwned,
{
    fn advance(&mut self, context: &Context<'_>) -> Poll<Option<Result<R, TaskError>>> {
        for _ in 0..LOOKS {
            let step = self.imap.step();
            if let Some(before) = self.before.take() {
                self.imap.widen(before);
            }
            match step {
                Step::Next(next) => return Poll::Ready(next),
                Step::More => break,
                Step::Wait => {}
            }
            let out = self.imap.out;
            let Some(run) = &self.imap.run else {
                return Poll::Ready(None);
            };
            self.before = Some(out);
            let for_room = out == 0;
            let watched = run
                .dispatcher
                .watch_batch(run.batch, for_room, context.waker());
            match watched {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(self.imap.break_off(TaskError::Pool(error))),
            }
        }
        // There is something to do, and others have a turn first.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<I: Iterator, R> Stream for ImapStream<I, R>
where
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = Result<R, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.in_a_row >= IN_A_ROW {
            self.in_a_row = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.advance(context);
        self.in_a_row = match next {
            Poll::Ready(_) => self.in_a_row + 1,
            Poll::Pending => 0,
        };
        next
    }
}

impl<I: Iterator, R> fmt::Debug for ImapStream<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ImapStream").field(&self.imap).finish()
    }
}

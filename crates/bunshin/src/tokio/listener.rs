//! Taking connections.

use std::fmt;

use ::tokio::sync::Mutex;

use super::stream::StreamConnection;
use super::watched::{Alarm, give_way, take_turns};
use crate::connection as plain;
use crate::error::Result;

/// A [`Listener`](crate::Listener) whose `accept` is `async`.
///
/// Its limits and time limits are those of the listener that it is made from, and nothing that
/// a peer sends is decoded before it has shown the key.
///
/// # Examples
/// ```
/// use bunshin::tokio::{Client, Listener, StreamConnection};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// # runtime.block_on(async {
/// let listener = Listener::new(bunshin::Listener::builder().authkey("secret").bind("@")?);
/// let client = Client::new(bunshin::Client::builder().authkey("secret"));
/// let address = listener.get_ref().local_addr();
/// let (here, there) = tokio::join!(client.connect(address), listener.accept());
/// let (here, there): (StreamConnection<String>, StreamConnection<String>) = (here?, there?);
/// here.send("hello".to_owned()).await?;
/// assert_eq!(there.recv().await?, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Listener {
    inner: plain::Listener,
    /// Whose turn it is to accept. Who waits does so for all greetings: one task is enough.
    turn: Mutex<()>,
}

impl Listener {
    /// Takes a listener.
    #[must_use]
    pub fn new(listener: plain::Listener) -> Self {
        Self {
            inner: listener,
            turn: Mutex::new(()),
        }
    }

    /// The listener itself: where it listens, and calls that do not wait.
    #[must_use]
    pub fn get_ref(&self) -> &plain::Listener {
        &self.inner
    }

    /// Gives the listener back, with the greetings that have begun.
    #[must_use]
    pub fn into_inner(self) -> plain::Listener {
        self.inner
    }

    /// Takes a connection whose peer has shown its key.
    ///
    /// Greetings of several peers go on side by side, while a task is in this call; when
    /// several tasks are, each connection goes to one of them.
    ///
    /// Cancel safe: if the future is dropped before it has given a connection, the greetings
    /// that have begun go on with the next call.
    ///
    /// # Errors
    /// As [`Listener::accept`](crate::Listener::accept): what was wrong with one peer, after
    /// which the call may be repeated. `Os` also where this process has too many files open to
    /// watch the connection, which is then closed.
    ///
    /// # Panics
    /// Outside of a runtime with `enable_io`.
    pub async fn accept<S, R>(&self) -> Result<StreamConnection<S, R>> {
        take_turns().await;
        let _turn = self.turn.lock().await;
        let mut looks = 0;
        loop {
            if let Some(connection) = self.inner.try_accept()? {
                return StreamConnection::new(connection);
            }
            match self.inner.with_waits(Alarm::new) {
                Some(alarm) => alarm?.rings().await?,
                // A thread accepts as well.
                None => give_way(&mut looks).await?,
            }
        }
    }
}

impl From<plain::Listener> for Listener {
    fn from(listener: plain::Listener) -> Self {
        Self::new(listener)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

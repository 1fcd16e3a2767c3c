//! Connecting to a listener.

use std::net::IpAddr;

use super::stream::StreamConnection;
use super::watched::{Alarm, blocking, take_turns};
use crate::connection::{self as plain, Address};
use crate::error::{Error, Result};

/// Connects to a [`Listener`](crate::Listener), or to one of CPython's, as its
/// [`ClientBuilder`](crate::ClientBuilder) says.
///
/// # Examples
/// ```
/// use bunshin::tokio::Client;
/// use bunshin::{ErrorKind, Listener};
/// use std::time::Duration;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
/// # runtime.block_on(async {
/// let silent = Listener::builder().authkey("secret").bind("@")?;
/// let builder = bunshin::Client::builder().authkey("secret");
/// let client = Client::new(builder.timeout(Duration::from_millis(20)));
/// let late = client.connect::<(), ()>(silent.local_addr()).await;
/// assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    inner: plain::ClientBuilder,
}

impl Client {
    /// Connects with the key, the limits and the time limit that are given here.
    #[must_use]
    pub fn new(builder: plain::ClientBuilder) -> Self {
        Self { inner: builder }
    }

    /// Connects, and waits until the listener has taken the connection and shown its key.
    ///
    /// If the future is dropped before it is done, so is the connection. Where the address has
    /// the name of a host, a thread of the runtime's looks it up, and is not interrupted.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`](crate::ClientBuilder::connect).
    ///
    /// # Panics
    /// Outside of a runtime with `enable_io`.
    pub async fn connect<S, R>(
        &self,
        address: impl TryInto<Address, Error: Into<Error>>,
    ) -> Result<StreamConnection<S, R>> {
        let address = address.try_into().map_err(Into::into)?;
        take_turns().await;
        let is_name = matches!(&address, Address::Tcp(host, _) if host.parse::<IpAddr>().is_err());
        let look_up = move || (address.places(), address);
        let (places, address) = if is_name {
            blocking(look_up).await?
        } else {
            look_up()
        };
        let mut call = self.inner.call(address, places?);
        loop {
            if let Some((link, peer)) = call.advance()? {
                return StreamConnection::new(plain::StreamConnection::new(link, peer));
            }
            let (handle, until) = call.waits_for();
            let alarm = Alarm::new(handle.as_slice(), Some(until))?;
            alarm.rings().await?;
        }
    }
}

impl From<plain::ClientBuilder> for Client {
    fn from(builder: plain::ClientBuilder) -> Self {
        Self::new(builder)
    }
}

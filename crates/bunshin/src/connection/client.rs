//! Connecting to a listener.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::address::Address;
use super::greeting::{Greeting, Security, Settings};
use super::stream::StreamConnection;
use crate::error::{Error, Result};
use crate::sys::network::{self, Connecting, Place};
use crate::sys::socket::{self, Interest};
use crate::transport::Patience;

/// Between two attempts at a listener that has no room for one more.
const PAUSE: Duration = Duration::from_millis(2);

/// Connects to a [`Listener`](crate::Listener), or to one of CPython's.
///
/// # Examples
/// ```
/// use bunshin::{Client, Listener, StreamConnection};
///
/// let listener = Listener::bind("@")?;
/// let here: StreamConnection<u32> = Client::connect(listener.local_addr())?;
/// let there: StreamConnection<u32> = listener.accept()?;
/// here.send(7)?;
/// assert_eq!(there.recv()?, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client(());

/// Says how a [`Client`] connects.
///
/// # Examples
/// ```
/// use bunshin::{Client, ErrorKind};
///
/// let nobody = Client::builder().authkey("secret").connect::<(), ()>("@nobody.listens.here");
/// assert_eq!(nobody.unwrap_err().kind(), ErrorKind::Os);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    settings: Settings,
    security: Security,
}

impl Client {
    /// Connects without a key.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    ///
    /// # Source
    /// CPython's `multiprocessing.connection.Client`.
    pub fn connect<S, R>(
        address: impl TryInto<Address, Error: Into<Error>>,
    ) -> Result<StreamConnection<S, R>> {
        Self::builder().connect(address)
    }

    /// Connects with a key, or with other limits.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            settings: Settings::default(),
            security: Security::None,
        }
    }
}

impl ClientBuilder {
    /// Shows the listener that this end has the key, and wants to see that it has it too.
    #[doc(alias = "authenticate")]
    pub fn authkey(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.settings.key = Some(key.into());
        self
    }

    /// Also shows the key by MD5, to listeners that know nothing better: CPython up to 3.11.
    /// Default: no.
    pub fn allow_md5(mut self, allow: bool) -> Self {
        self.settings.takes_md5 = allow;
        self
    }

    /// The longest message, either way; default 256 MiB.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.settings.message_limit = bytes;
        self
    }

    /// The time for everything together, from the first attempt until both ends have shown
    /// their keys; default 20 s. Looking up a host's name is not counted.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.greeting_timeout = timeout;
        self
    }

    /// Carries everything under TLS, and wants a certificate for `server`, a name or an
    /// IP address.
    ///
    /// See [`tls::client_config`](crate::tls::client_config) for one from PEM files.
    ///
    /// # Errors
    /// `InvalidInput` if `server` is no name.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, server: &str, config: Arc<rustls::ClientConfig>) -> Result<Self> {
        let name = rustls::pki_types::ServerName::try_from(server.to_owned()).map_err(|error| {
            let what = format!("{server:?} is no name of a server");
            Error::because(crate::error::ErrorKind::InvalidInput, what, error)
        })?;
        self.security = Security::Client(name, config);
        Ok(self)
    }

    /// Connects, and waits until the listener has taken the connection and shown its key.
    ///
    /// Without a key (and without TLS) the system takes the connection, also while the
    /// listener's process is busy with something else.
    ///
    /// # Errors
    /// `Os` if nobody listens there, or it cannot be reached; `TimedOut`; `Authentication` if
    /// the listener has another key, asks for none, or uses MD5; `InvalidInput` if the text is
    /// no address.
    pub fn connect<S, R>(
        &self,
        address: impl TryInto<Address, Error: Into<Error>>,
    ) -> Result<StreamConnection<S, R>> {
        let address = address.try_into().map_err(Into::into)?;
        let settings = Arc::new(self.settings.clone());
        let patience = Patience::within(settings.greeting_timeout);
        let failed = |error| Error::os(format!("connect to {address}"), error);
        let mut last = None;
        for place in address.places()? {
            match dial(&place, patience) {
                Ok(socket) => {
                    let peer = place.into();
                    let greeting = Greeting::of_client(socket, peer, &settings, &self.security)?;
                    return greet(greeting);
                }
                // The next of its addresses may answer.
                Err(error) => last = Some(error),
            }
        }
        Err(failed(
            last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()),
        ))
    }
}

/// A socket that is connected to `place`.
fn dial(place: &Place, patience: Patience) -> io::Result<OwnedFd> {
    let socket = network::caller(place)?;
    loop {
        if patience.is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match network::connect(socket.as_fd(), place)? {
            Connecting::Done => return Ok(socket),
            Connecting::UntilWritable => {
                let handles = [(socket.as_fd(), Interest::Writable)];
                if socket::poll(&handles, patience.deadline(), &mut Vec::new())? == 0 {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                network::connected(socket.as_fd())?;
                return Ok(socket);
            }
            // A Unix socket does not say when its listener has room again.
            Connecting::Crowded => {
                let pause = patience.deadline().map_or(PAUSE, |deadline| {
                    PAUSE.min(deadline.saturating_duration_since(Instant::now()))
                });
                std::thread::sleep(pause);
            }
        }
    }
}

fn greet<S, R>(mut greeting: Greeting) -> Result<StreamConnection<S, R>> {
    loop {
        if greeting.advance()? {
            let (link, peer) = greeting.finish();
            return Ok(StreamConnection::new(link, peer));
        }
        if greeting.is_late() {
            return Err(greeting.late());
        }
        let handles = [greeting.waits_for()];
        socket::poll(&handles, Some(greeting.deadline()), &mut Vec::new())
            .map_err(|error| Error::os(format!("wait for {}", greeting.peer()), error))?;
    }
}

//! Connecting to a listener.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::address::Address;
use super::greeting::{Greeting, Security, Settings};
use super::stream::StreamConnection;
use crate::error::{Error, Result};
use crate::sys::network::{self, Connecting, Place};
use crate::sys::socket::{self, Interest};
use crate::transport::link::Link;

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
        let places = address.places()?;
        let mut call = self.call(address, places);
        loop {
            if let Some((link, peer)) = call.advance()? {
                return Ok(StreamConnection::new(link, peer));
            }
            let (handle, until) = call.waits_for();
            socket::poll(handle.as_slice(), Some(until), &mut Vec::new()).map_err(|error| {
                Error::os(format!("wait for a connection to {}", call.address), error)
            })?;
        }
    }

    /// Begins to connect to a listener that is at one of `places`.
    pub(crate) fn call(&self, address: Address, places: Vec<Place>) -> Call {
        Call {
            address,
            places: places.into_iter(),
            settings: Arc::new(self.settings.clone()),
            security: self.security.clone(),
            deadline: self.settings.deadline(),
            stage: Stage::Next(None),
        }
    }
}

/// A connection that is being made, at one place after another.
///
/// As the greeting in which it ends, it moves only when it is asked to, and never waits.
#[derive(Debug)]
pub(crate) struct Call {
    address: Address,
    places: std::vec::IntoIter<Place>,
    settings: Arc<Settings>,
    security: Security,
    deadline: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Another place is to be tried; the one before, if any, has failed with this.
    Next(Option<io::Error>),
    /// The system is asked to connect.
    Dialling(OwnedFd, Place, Connecting),
    /// The listener's machine has answered.
    Greeting(Box<Greeting>),
}

impl Call {
    /// Goes as far as it goes now; gives the connection once both ends believe each other.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`]; after that, it is to be dropped.
    pub(crate) fn advance(&mut self) -> Result<Option<(Link, Address)>> {
        loop {
            self.stage = match std::mem::replace(&mut self.stage, Stage::Next(None)) {
                Stage::Next(last) => {
                    let Some(place) = self.places.next() else {
                        let error = last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
                        return Err(Error::os(format!("connect to {}", self.address), error));
                    };
                    match dial(&place) {
                        Ok((socket, how)) => Stage::Dialling(socket, place, how),
                        // The next of its places may answer.
                        Err(error) => Stage::Next(Some(error)),
                    }
                }
                Stage::Dialling(socket, place, how) => match dialled(&socket, &place, how) {
                    Ok(Connecting::Done) => self.greet(socket, place)?,
                    Ok(_) if Instant::now() >= self.deadline => {
                        Stage::Next(Some(io::ErrorKind::TimedOut.into()))
                    }
                    Ok(how) => {
                        self.stage = Stage::Dialling(socket, place, how);
                        return Ok(None);
                    }
                    Err(error) => Stage::Next(Some(error)),
                },
                Stage::Greeting(mut greeting) => {
                    if greeting.advance()? {
                        return Ok(Some(greeting.finish()));
                    }
                    if greeting.is_late() {
                        return Err(greeting.late());
                    }
                    self.stage = Stage::Greeting(greeting);
                    return Ok(None);
                }
            };
        }
    }

    fn greet(&self, socket: OwnedFd, place: Place) -> Result<Stage> {
        let peer = place.into();
        let (settings, security) = (&self.settings, &self.security);
        let greeting = Greeting::of_client(socket, peer, settings, security, self.deadline)?;
        Ok(Stage::Greeting(Box::new(greeting)))
    }

    /// What has to happen before it can go on, and when it is to be tried again at the latest.
    pub(crate) fn waits_for(&self) -> (Option<(BorrowedFd<'_>, Interest)>, Instant) {
        match &self.stage {
            Stage::Next(_) => (None, Instant::now()),
            // A Unix socket does not say when its listener has room again.
            Stage::Dialling(_, _, Connecting::Crowded) => {
                (None, self.deadline.min(Instant::now() + PAUSE))
            }
            Stage::Dialling(socket, ..) => {
                (Some((socket.as_fd(), Interest::Writable)), self.deadline)
            }
            Stage::Greeting(greeting) => (Some(greeting.waits_for()), greeting.deadline()),
        }
    }
}

/// A socket that is connected to `place`, or about to be.
fn dial(place: &Place) -> io::Result<(OwnedFd, Connecting)> {
    let socket = network::caller(place)?;
    let how = network::connect(socket.as_fd(), place)?;
    Ok((socket, how))
}

/// How it goes with a socket that may not have been connected at once.
fn dialled(socket: &OwnedFd, place: &Place, how: Connecting) -> io::Result<Connecting> {
    match how {
        Connecting::Done => Ok(how),
        Connecting::Crowded => network::connect(socket.as_fd(), place),
        Connecting::UntilWritable => {
            let handles = [(socket.as_fd(), Interest::Writable)];
            if socket::poll(&handles, Some(Instant::now()), &mut Vec::new())? == 0 {
                return Ok(how);
            }
            network::connected(socket.as_fd())?;
            Ok(Connecting::Done)
        }
    }
}

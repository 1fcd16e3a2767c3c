//! What two ends do before either believes the other: TLS, then the key.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::address::Address;
use super::auth::{Exchange, Key, MESSAGE_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket::Interest;
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::link::Link;
use crate::transport::wire::Wire;

/// The longest message, unless the user says otherwise.
pub(super) const MESSAGE_LIMIT: usize = 256 << 20;
/// The time for a greeting, unless the user says otherwise.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// What listeners and clients are told about their connections.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) key: Option<Vec<u8>>,
    pub(super) takes_md5: bool,
    pub(super) message_limit: usize,
    pub(super) greeting_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            key: None,
            takes_md5: false,
            message_limit: MESSAGE_LIMIT,
            greeting_timeout: GREETING_TIMEOUT,
        }
    }
}

impl Settings {
    /// When a greeting that begins now has to be done.
    pub(super) fn deadline(&self) -> Instant {
        let now = Instant::now();
        let far = Duration::from_secs(365 * 24 * 60 * 60);
        let deadline = now.checked_add(self.greeting_timeout.min(far));
        deadline.unwrap_or(now)
    }

    fn key(&self) -> Option<Key> {
        let key = self.key.clone()?;
        Some(Key::new(key, self.takes_md5))
    }
}

/// How TLS is to be laid over a socket.
#[derive(Clone, Debug, Default)]
pub(super) enum Security {
    #[default]
    None,
    #[cfg(feature = "tls")]
    Server(Arc<rustls::ServerConfig>),
    #[cfg(feature = "tls")]
    Client(
        rustls::pki_types::ServerName<'static>,
        Arc<rustls::ClientConfig>,
    ),
}

impl Security {
    fn over(&self, socket: OwnedFd) -> Result<Wire> {
        match self {
            Self::None => Ok(Wire::plain(socket)),
            #[cfg(feature = "tls")]
            Self::Server(config) => {
                let session = rustls::ServerConnection::new(Arc::clone(config));
                secure(socket, session.map(rustls::Connection::from))
            }
            #[cfg(feature = "tls")]
            Self::Client(name, config) => {
                let session = rustls::ClientConnection::new(Arc::clone(config), name.clone());
                secure(socket, session.map(rustls::Connection::from))
            }
        }
    }
}

#[cfg(feature = "tls")]
fn secure(
    socket: OwnedFd,
    session: std::result::Result<rustls::Connection, rustls::Error>,
) -> Result<Wire> {
    let session = session
        .map_err(|error| Error::because(ErrorKind::InvalidInput, "begin a TLS session", error))?;
    let session = crate::transport::tls::Session::new(session);
    Ok(Wire::secured(socket, session))
}

/// A connection that is not yet one.
///
/// It moves only when it is asked to, and never waits, so that one thread can see to many of
/// them and the slowest holds up nobody.
#[derive(Debug)]
pub(super) struct Greeting {
    link: Link,
    exchange: Option<Exchange>,
    /// The first message, if it is ours.
    first: Option<Vec<u8>>,
    peer: Address,
    deadline: Instant,
    settings: Arc<Settings>,
}

impl Greeting {
    pub(super) fn of_listener(
        socket: OwnedFd,
        peer: Address,
        settings: &Arc<Settings>,
        security: &Security,
    ) -> Result<Self> {
        let deadline = settings.deadline();
        let mut greeting = Self::new(socket, peer, settings, security, None, deadline)?;
        if let Some(key) = settings.key() {
            let (exchange, first) = Exchange::listener(key)?;
            greeting.exchange = Some(exchange);
            greeting.first = Some(first);
        }
        Ok(greeting)
    }

    pub(super) fn of_client(
        socket: OwnedFd,
        peer: Address,
        settings: &Arc<Settings>,
        security: &Security,
        deadline: Instant,
    ) -> Result<Self> {
        let exchange = settings.key().map(Exchange::client);
        Self::new(socket, peer, settings, security, exchange, deadline)
    }

    fn new(
        socket: OwnedFd,
        peer: Address,
        settings: &Arc<Settings>,
        security: &Security,
        exchange: Option<Exchange>,
        deadline: Instant,
    ) -> Result<Self> {
        Ok(Self {
            link: Link::new(security.over(socket)?, MESSAGE_MAX),
            exchange,
            first: None,
            peer,
            deadline,
            settings: Arc::clone(settings),
        })
    }

    /// Goes as far as it goes now; true once both ends believe each other.
    ///
    /// # Errors
    /// Whatever ends it; after that, it is to be dropped.
    pub(super) fn advance(&mut self) -> Result<bool> {
        self.step().map_err(|error| {
            let what = format!("greet the peer at {}", self.peer);
            match error {
                Failure::Disconnected => Error::new(
                    ErrorKind::Disconnected,
                    format!("{what}: it has closed the connection"),
                ),
                Failure::NotYet => Error::new(ErrorKind::TimedOut, what),
                Failure::Other(error) => Error::because(error.kind(), what, error),
            }
        })
    }

    fn step(&mut self) -> Result<bool, Failure> {
        let shaken = self.link.wire().shake_hands();
        if !shaken.map_err(|error| Failure::Other(tls_failed(error)))? {
            return Ok(false);
        }
        if let Some(first) = self.first.take() {
            self.link.post(&first)?;
        }
        let Some(exchange) = &mut self.exchange else {
            return Ok(true);
        };
        loop {
            let message = match self.link.receive(Patience::Never) {
                Ok(message) => message,
                Err(Failure::NotYet) => return Ok(false),
                Err(failure) => return Err(failure),
            };
            let reply = exchange.receive(&message);
            for message in &reply.messages {
                let posted = self.link.post(message);
                if reply.result.is_ok() {
                    posted?;
                }
            }
            if reply.result.map_err(Failure::Other)? {
                return Ok(true);
            }
        }
    }

    pub(super) fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// The error of one that [is late](Self::is_late).
    pub(super) fn late(&self) -> Error {
        let (peer, limit) = (&self.peer, self.settings.greeting_timeout);
        Error::new(
            ErrorKind::TimedOut,
            format!("greet the peer at {peer}: not done within {limit:?}"),
        )
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn peer(&self) -> &Address {
        &self.peer
    }

    /// What has to happen before it can go on.
    pub(super) fn waits_for(&self) -> (BorrowedFd<'_>, Interest) {
        (self.link.wire().socket(), self.link.interest())
    }

    /// The connection, once [`advance`](Self::advance) said so.
    pub(super) fn finish(mut self) -> (Link, Address) {
        self.link.set_limit(self.settings.message_limit);
        (self.link, self.peer)
    }
}

/// What ended a TLS handshake.
fn tls_failed(error: std::io::Error) -> Error {
    let kind = match error.kind() {
        // Certificates, versions, or bytes that are not TLS at all.
        std::io::ErrorKind::InvalidData => ErrorKind::Authentication,
        _ => return Error::os("TLS", error),
    };
    Error::because(kind, "TLS", error)
}

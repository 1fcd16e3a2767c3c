//! Taking connections from other programs.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::address::Address;
use super::greeting::{Greeting, Security, Settings};
use super::stream::StreamConnection;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::network::{self, Place};
use crate::sys::socket::{self, Interest};
use crate::transport::Patience;
use crate::transport::turn::Turn;

/// Connections taken from the system at a time; then the greetings have their turn.
const TAKEN_AT_ONCE: usize = 16;

/// Waits for connections of other programs, also of other languages and other machines.
///
/// A connection over it carries messages as CPython's `multiprocessing.connection` does, so
/// that a Python program can be at its other end. With a key, nothing that a peer sends is
/// looked at before it has shown that it has the same key, and it gets the same proof.
///
/// Peers that are slow, or do not go on at all, hold up nobody: their greetings wait side
/// by side, each for so long at most, and the oldest gives way when there are too many.
///
/// The file of a Unix socket is removed when the listener is dropped, by the process that
/// made it. If that is killed, its file stays, and the next listener there gets
/// `AddrInUse`, unless it [removes stale files](ListenerBuilder::remove_stale).
///
/// # Examples
/// ```
/// use bunshin::{Client, Listener, StreamConnection};
///
/// let listener = Listener::builder().authkey("secret").bind("@")?;
/// let address = listener.local_addr().clone();
/// let client = std::thread::spawn(move || {
///     let client = Client::builder().authkey("secret");
///     let connection: StreamConnection<String> = client.connect(&address)?;
///     connection.send("hello".to_owned()).map_err(bunshin::Error::from)
/// });
/// let connection: StreamConnection<String> = listener.accept()?;
/// assert_eq!(connection.recv()?, "hello");
/// client.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Listener {
    socket: OwnedFd,
    local: Address,
    settings: Arc<Settings>,
    security: Security,
    max_greetings: usize,
    greetings: Turn<Vec<Greeting>>,
    last: Mutex<Option<Address>>,
    /// Removed when this is dropped.
    file: Option<SocketFile>,
}

/// Makes a [`Listener`].
///
/// # Examples
/// ```
/// use bunshin::Listener;
///
/// let listener = Listener::builder().authkey("secret").backlog(16).bind("localhost:0")?;
/// assert!(listener.local_addr().to_string().starts_with("127.0.0.1:"));
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ListenerBuilder {
    settings: Settings,
    security: Security,
    backlog: u32,
    max_greetings: usize,
    removes_stale: bool,
}

impl ListenerBuilder {
    /// Takes only peers that have this key. Without one, everybody is taken.
    ///
    /// The proof goes both ways, and the key itself is never sent. Without TLS, what follows
    /// is neither hidden nor protected from somebody who sits in the middle.
    #[doc(alias = "authenticate")]
    pub fn authkey(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.settings.key = Some(key.into());
        self
    }

    /// Also takes peers that only know how to show the key by MD5: CPython up to 3.11.
    /// Default: no.
    pub fn allow_md5(mut self, allow: bool) -> Self {
        self.settings.takes_md5 = allow;
        self
    }

    /// Connections that the system keeps while nobody accepts; default 128.
    pub fn backlog(mut self, n_connections: u32) -> Self {
        self.backlog = n_connections;
        self
    }

    /// The longest message, either way; default 256 MiB. A peer that announces a longer one
    /// gets no memory for it, and its connection is `Corrupt`.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.settings.message_limit = bytes;
        self
    }

    /// The time that a peer has, from when it is taken until it has shown its key; default
    /// 20 s.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.settings.greeting_timeout = timeout;
        self
    }

    /// Peers that may be about to show their keys at a time; default 64. When one more
    /// comes, the one that has waited longest is dropped.
    pub fn max_pending(mut self, n_peers: usize) -> Self {
        self.max_greetings = n_peers;
        self
    }

    /// Removes the file of a Unix socket that nobody listens on any more, and takes its
    /// place. Default: no; such a file is then `AddrInUse`.
    ///
    /// Anything but a socket is left alone, and so is a socket that takes connections. Two
    /// programs that do this at the same moment can take the place from each other; where
    /// that may be, hold a lock.
    pub fn remove_stale(mut self, remove: bool) -> Self {
        self.removes_stale = remove;
        self
    }

    /// Carries everything under TLS, the showing of the keys included.
    ///
    /// See [`tls::server_config`](crate::tls::server_config) for one from PEM files.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, config: Arc<rustls::ServerConfig>) -> Self {
        self.security = Security::Server(config);
        self
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// `InvalidInput` if the text is no address, or too long for the system; `Os` if the
    /// system refuses, such as for an address that is in use.
    pub fn bind(&self, address: impl TryInto<Address, Error: Into<Error>>) -> Result<Listener> {
        let address = address.try_into().map_err(Into::into)?;
        if self.max_greetings == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a listener must be able to greet one peer at least",
            ));
        }
        let mut failed = None;
        for place in address.places()? {
            match self.listen(&place) {
                Ok((socket, file)) => {
                    let local = network::local(socket.as_fd())
                        .map_err(|error| Error::os(format!("listen at {address}"), error))?;
                    return Ok(Listener {
                        socket,
                        local: local.into(),
                        settings: Arc::new(self.settings.clone()),
                        security: self.security.clone(),
                        max_greetings: self.max_greetings,
                        greetings: Turn::new(Vec::new()),
                        last: Mutex::new(None),
                        file,
                    });
                }
                Err(error) => failed = Some(error),
            }
        }
        let error = failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
        Err(Error::os(format!("listen at {address}"), error))
    }

    fn listen(&self, place: &Place) -> io::Result<(OwnedFd, Option<SocketFile>)> {
        let Place::Path(path) = place else {
            return Ok((network::listen(place, self.backlog)?, None));
        };
        let socket = match network::listen(place, self.backlog) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && self.removes_stale
                    && is_stale(path) =>
            {
                std::fs::remove_file(path)?;
                network::listen(place, self.backlog)?
            }
            other => other?,
        };
        Ok((socket, Some(SocketFile::of(path)?)))
    }
}

/// Whether a path is a socket that nobody listens on.
fn is_stale(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    let place = Place::Path(path.to_owned());
    is_socket
        && network::caller(&place)
            .and_then(|socket| network::connect(socket.as_fd(), &place))
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The file of a Unix socket.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: another file may have taken the place.
    identity: (u64, u64),
    /// Forked children have a copy of this, and are not to remove anything.
    owner: u32,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        // The working directory may be another one when the file is removed.
        let path = std::path::absolute(path)?;
        let file = std::fs::symlink_metadata(&path)?;
        Ok(Self {
            path,
            identity: (file.dev(), file.ino()),
            owner: std::process::id(),
        })
    }
}

impl SocketFile {
    fn remove(&self) {
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if self.owner == std::process::id() && is_ours {
            // It may be gone, or not ours to remove any more; nobody could be told.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Listener {
    /// Removes the file of a Unix socket, while others may still be waiting in `accept`.
    pub(crate) fn remove_file(&self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }

    /// Begins to listen, without a key: everybody who can reach the address is taken.
    ///
    /// # Errors
    /// As [`ListenerBuilder::bind`].
    ///
    /// # Source
    /// CPython's `multiprocessing.connection.Listener`.
    pub fn bind(address: impl TryInto<Address, Error: Into<Error>>) -> Result<Self> {
        Self::builder().bind(address)
    }

    /// Makes a listener with a key, or with other limits.
    pub fn builder() -> ListenerBuilder {
        ListenerBuilder {
            settings: Settings::default(),
            security: Security::None,
            backlog: 128,
            max_greetings: 64,
            removes_stale: false,
        }
    }

    /// Where it listens, with the port or the name that the system chose.
    #[doc(alias = "address")]
    pub fn local_addr(&self) -> &Address {
        &self.local
    }

    /// Where the connection came from that was accepted last.
    pub fn last_accepted(&self) -> Option<Address> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    /// Waits for a connection, until its peer has shown its key.
    ///
    /// When several threads accept, each connection goes to one of them.
    ///
    /// # Errors
    /// What was wrong with one peer; the listener goes on, and the call may be repeated:
    /// `Authentication` (another key, or none), `TimedOut` (it did not go on), `Busy` (it had
    /// to give way to others), `Corrupt`, `Disconnected`. `Os` and `OutOfMemory` are of the
    /// system and say that this process could not take the connection.
    ///
    /// # Source
    /// CPython's `Listener.accept`.
    pub fn accept<S, R>(&self) -> Result<StreamConnection<S, R>> {
        match self.take(Patience::Forever)? {
            Some(connection) => Ok(connection),
            None => Err(Error::new(ErrorKind::TimedOut, "accept a connection")),
        }
    }

    /// Takes a connection whose peer has shown its key, if there is one now; `None` if not.
    ///
    /// A greeting takes several messages each way, and goes on only during calls: with a
    /// key, the first call finds a new peer, and a later one has the connection.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn try_accept<S, R>(&self) -> Result<Option<StreamConnection<S, R>>> {
        self.take(Patience::Never)
    }

    /// Waits for a connection for so long at most; `None` if there was none.
    ///
    /// A greeting that is not done when the time has passed goes on with the next call.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn accept_timeout<S, R>(
        &self,
        timeout: Duration,
    ) -> Result<Option<StreamConnection<S, R>>> {
        self.take(Patience::within(timeout))
    }

    fn take<S, R>(&self, patience: Patience) -> Result<Option<StreamConnection<S, R>>> {
        let Some(mut greetings) = self.greetings.take(patience) else {
            return Ok(None);
        };
        loop {
            if let Some(greeting) = self.advance(&mut greetings)? {
                let (link, peer) = greeting.finish();
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Some(peer.clone());
                return Ok(Some(StreamConnection::new(link, peer)));
            }
            if !self.wait(&greetings, patience)? && patience.is_over() {
                return Ok(None);
            }
        }
    }

    /// Takes what the system has, and lets each greeting go as far as it goes; gives one
    /// that is done.
    fn advance(&self, greetings: &mut Vec<Greeting>) -> Result<Option<Greeting>> {
        let mut at = 0;
        while at < greetings.len() {
            match greetings[at].advance() {
                Ok(true) => return Ok(Some(greetings.remove(at))),
                Ok(false) if greetings[at].is_late() => return Err(greetings.remove(at).late()),
                Ok(false) => at += 1,
                Err(error) => {
                    greetings.remove(at);
                    return Err(error);
                }
            }
        }
        for _ in 0..TAKEN_AT_ONCE {
            let accepted = network::accept(self.socket.as_fd())
                .map_err(|error| Error::os(format!("accept at {}", self.local), error))?;
            let Some((socket, place)) = accepted else {
                break;
            };
            let peer = place.into();
            let mut new = Greeting::of_listener(socket, peer, &self.settings, &self.security)?;
            if new.advance()? {
                return Ok(Some(new));
            }
            greetings.push(new);
            if greetings.len() > self.max_greetings {
                let oldest = greetings.remove(0);
                let (peer, most) = (oldest.peer(), self.max_greetings);
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "greet the peer at {peer}: {most} peers came after it while it was slow"
                    ),
                ));
            }
        }
        Ok(None)
    }

    fn wait(&self, greetings: &[Greeting], patience: Patience) -> Result<bool> {
        let (handles, first_late) = self.waits_for(greetings);
        let deadline = [patience.deadline(), first_late]
            .into_iter()
            .flatten()
            .min();
        socket::poll(&handles, deadline, &mut Vec::new())
            .map(|count| count > 0)
            .map_err(|error| Error::os(format!("wait for a connection at {}", self.local), error))
    }

    /// What has to happen before there is something to do, and when there is in any case.
    fn waits_for<'a>(
        &'a self,
        greetings: &'a [Greeting],
    ) -> (Vec<(BorrowedFd<'a>, Interest)>, Option<Instant>) {
        let mut handles = vec![(self.socket.as_fd(), Interest::Readable)];
        handles.extend(greetings.iter().map(Greeting::waits_for));
        (handles, greetings.iter().map(Greeting::deadline).min())
    }

    /// Passes on what `accept` would wait for now, to whoever has another way to do so; `None`
    /// while another thread is in `accept`.
    #[cfg(feature = "tokio")]
    pub(crate) fn with_waits<T>(
        &self,
        wait: impl FnOnce(&[(BorrowedFd<'_>, Interest)], Option<Instant>) -> T,
    ) -> Option<T> {
        let greetings = self.greetings.take(Patience::Never)?;
        let (handles, first_late) = self.waits_for(&greetings);
        Some(wait(&handles, first_late))
    }

    /// The listening socket, for `select`, `poll`, `epoll` or an event loop: readable while
    /// the system has a connection that was not taken.
    ///
    /// It does not tell how greetings go on that have begun. Only to be watched.
    pub fn fileno(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.local)
    }
}

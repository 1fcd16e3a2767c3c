//! A server's ears: a thread for each address that it serves, which takes connections and has
//! them show the key. Only then do they come to the thread that has the objects.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::{kind_of, number_of};
use super::registry::lock;
use crate::connection::{Address, Listener};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket;
use crate::transport::link::Link;

/// After the system has refused a connection, this long nothing is asked of it: it may have
/// no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// An address inside a message to the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Place {
    Path(Vec<u8>),
    Abstract(Vec<u8>),
    Tcp(String, u16),
}

impl Place {
    pub(super) fn of(address: &Address) -> Result<Self> {
        Ok(match address {
            Address::Path(path) => {
                // The server may have another working directory.
                let path = std::path::absolute(path)
                    .map_err(|error| Error::os(format!("serve at {address}"), error))?;
                Self::Path(path.as_os_str().as_bytes().to_vec())
            }
            Address::Abstract(name) => Self::Abstract(name.clone()),
            Address::Unnamed => Self::Abstract(Vec::new()),
            Address::Tcp(host, port) => Self::Tcp(host.clone(), *port),
        })
    }
}

impl From<Place> for Address {
    fn from(place: Place) -> Self {
        match place {
            Place::Path(bytes) => Self::Path(PathBuf::from(std::ffi::OsString::from_vec(bytes))),
            Place::Abstract(name) => Self::Abstract(name),
            Place::Tcp(host, port) => Self::Tcp(host, port),
        }
    }
}

/// What a server is told about an address to serve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Serve {
    pub(super) place: Place,
    pub(super) key: Vec<u8>,
    pub(super) allow_md5: bool,
    pub(super) remove_stale: bool,
    pub(super) backlog: u32,
    pub(super) max_pending: usize,
    /// Files with a certificate and its private key.
    pub(super) tls: Option<(PathBuf, PathBuf)>,
    pub(super) limits: Limits,
}

/// What guests may ask of a server.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) message_bytes: usize,
    pub(super) handshake: Duration,
    pub(super) idle: Option<Duration>,
}

/// How that went, on its way back.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Served {
    At(Place),
    Failed(u64, String),
}

impl Served {
    pub(super) fn into_result(self) -> Result<Address> {
        match self {
            Self::At(place) => Ok(place.into()),
            Self::Failed(kind, words) => Err(Error::new(kind_of(kind), words)),
        }
    }
}

/// What comes to the server's first thread from its others.
pub(super) enum Event {
    /// A connection that has shown the key.
    Arrived(Box<Link>, Arc<Limits>),
    /// The thread that called methods for a guest's connection is done with it.
    Left(u64),
}

/// Where it comes to.
pub(super) struct Inbox {
    /// Readable while there is something.
    bell: OwnedFd,
    events: Mutex<Vec<Event>>,
    listeners: Mutex<Vec<Arc<Listener>>>,
}

impl Inbox {
    pub(super) fn new() -> Result<Self> {
        let bell = socket::event()
            .map_err(|error| Error::os("make a bell for a manager's server", error))?;
        Ok(Self {
            bell,
            events: Mutex::default(),
            listeners: Mutex::default(),
        })
    }

    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(super) fn put(&self, event: Event) {
        lock(&self.events).push(event);
        socket::event_set(self.bell());
    }

    pub(super) fn take(&self) -> Vec<Event> {
        // The other way round, an event between the two would have no bell.
        socket::event_clear(self.bell());
        std::mem::take(&mut *lock(&self.events))
    }

    /// The server ends: what names its addresses in the file system goes.
    pub(super) fn close(&self) {
        for listener in lock(&self.listeners).iter() {
            listener.remove_file();
        }
    }
}

/// Begins to serve at an address. Runs on a thread that may wait, as for names of hosts.
pub(super) fn open(serve: Serve, inbox: &Arc<Inbox>) -> Served {
    match listen(serve, inbox).and_then(|address| Place::of(&address)) {
        Ok(place) => Served::At(place),
        Err(error) => Served::Failed(number_of(error.kind()), error.to_string()),
    }
}

fn listen(serve: Serve, inbox: &Arc<Inbox>) -> Result<Address> {
    let builder = Listener::builder()
        .authkey(serve.key)
        .allow_md5(serve.allow_md5)
        .remove_stale(serve.remove_stale)
        .backlog(serve.backlog)
        .max_pending(serve.max_pending)
        .max_message_bytes(serve.limits.message_bytes)
        .handshake_timeout(serve.limits.handshake);
    #[cfg(feature = "tls")]
    let builder = match &serve.tls {
        Some((certificate, key)) => {
            builder.tls(crate::connection::tls::server_config(certificate, key)?)
        }
        None => builder,
    };
    let listener = Arc::new(builder.bind(Address::from(serve.place))?);
    let address = listener.local_addr().clone();
    lock(&inbox.listeners).push(Arc::clone(&listener));
    let (inbox, limits) = (Arc::clone(inbox), Arc::new(serve.limits));
    std::thread::Builder::new()
        .name("bunshin-remote".into())
        .spawn(move || {
            loop {
                match listener.accept::<(), ()>() {
                    Ok(connection) => {
                        let (link, _) = connection.into_link();
                        inbox.put(Event::Arrived(Box::new(link), Arc::clone(&limits)));
                    }
                    Err(error)
                        if matches!(error.kind(), ErrorKind::Os | ErrorKind::OutOfMemory) =>
                    {
                        std::thread::sleep(PAUSE);
                    }
                    // What was wrong with one peer; it has been turned away.
                    Err(_) => {}
                }
            }
        })
        .map_err(|error| Error::os("start a thread of a manager's server", error))?;
    Ok(address)
}

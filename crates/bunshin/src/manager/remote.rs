//! Managers over a network: what serves one, and what connects to it.

use std::fmt;
#[cfg(feature = "tls")]
use std::path::PathBuf;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::handle::Manager;
use super::managed;
use super::message::{GuestHello, Op, ReplyHead, Status, Token, Welcome, kind_of};
use super::referent::Referent;
use super::serving::{Limits, Place, Serve, Served};
use crate::connection::{self, Address};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::link::Link;

/// The longest message, unless the user says otherwise.
const MESSAGE_LIMIT: usize = 64 << 20;
/// The time to show a key, and to connect.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// How long a connection may carry nothing.
const IDLE: Duration = Duration::from_secs(5 * 60);

/// Has a manager's server take clients at an address: from [`Manager::serve`].
///
/// # Shape and units
/// What is not said is:
///
/// | Limit | Default |
/// |---|---|
/// | connections of clients together | 256 |
/// | the longest message, either way | 64 MiB |
/// | the time to show the key | 20 s |
/// | peers that may be about to do so at a time | 64 |
/// | the time for which a connection may carry no call | 5 minutes |
///
/// # Examples
/// ```
/// use bunshin::{Manager, manager::DictProxy};
///
/// let manager = Manager::new()?;
/// let scores = manager.dict::<String, u32>()?;
/// manager.publish("scores", &scores)?;
/// let address = manager.serve("secret").max_connections(16).bind("127.0.0.1:0")?;
///
/// // On another machine:
/// let there = Manager::connect(&address, "secret")?;
/// let found: DictProxy<String, u32> = there.find("scores")?.ok_or("nobody keeps scores")?;
/// found.insert("ann", &3)?;
/// assert_eq!(scores.get("ann")?, Some(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is served until `bind` is called"]
pub struct ServeBuilder<'a> {
    manager: &'a Manager,
    serve: Serve,
}

impl<'a> ServeBuilder<'a> {
    pub(super) fn new(manager: &'a Manager, key: Vec<u8>) -> Self {
        Self {
            manager,
            serve: Serve {
                place: Place::Abstract(Vec::new()),
                key,
                allow_md5: false,
                remove_stale: true,
                backlog: 128,
                max_pending: 64,
                tls: None,
                limits: Limits {
                    connections: 256,
                    message_bytes: MESSAGE_LIMIT,
                    handshake: HANDSHAKE,
                    idle: Some(IDLE),
                },
            },
        }
    }

    /// Connections that clients may have at a time, all together; default 256.
    ///
    /// A client's process has one, and one more for each of its threads that call at the same
    /// time. One that is too many is `Busy` at the client.
    pub fn max_connections(mut self, n_connections: usize) -> Self {
        self.serve.limits.connections = n_connections;
        self
    }

    /// The longest request or answer; default 64 MiB.
    ///
    /// A longer one is `InvalidInput` at the client, in either direction. (An item that a
    /// client took out of an object, and that is too long for it, is lost.) One who announces
    /// more all the same gets no memory for it, and is disconnected.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.serve.limits.message_bytes = bytes;
        self
    }

    /// The time that a peer has to show its key, and then to say what it wants; default 20 s.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.serve.limits.handshake = timeout;
        self
    }

    /// Peers that may be about to show their keys at a time; default 64. When one more comes,
    /// the one that has waited longest is dropped.
    pub fn max_pending(mut self, n_peers: usize) -> Self {
        self.serve.max_pending = n_peers;
        self
    }

    /// The time for which a connection for calls may carry none; default 5 minutes.
    ///
    /// It is then closed, and so is one whose client has sent half of a request, or takes no
    /// answer. Clients open another one when they call next, so that they notice nothing.
    /// A call that waits in the server, for a lock or an item, is not idle. `None`
    /// is no limit.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.serve.limits.idle = timeout.into();
        self
    }

    /// Carries everything under TLS, the showing of the keys included: with the certificate
    /// and the private key in these files (PEM), which the server reads.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        self.serve.tls = Some((certificate.into(), private_key.into()));
        self
    }

    /// Begins to serve, for as long as the server lives; gives the address, with the port or
    /// the name that the system chose.
    ///
    /// May be called again, for further addresses. A socket in the file system that nobody
    /// listens on any more is replaced.
    ///
    /// # Errors
    /// `InvalidInput` for a key without bytes, or an address or file that is none; `Os` if the
    /// system refuses, such as for an address that is in use; `Unsupported` if this manager is
    /// itself [connected](Manager::connect) over a network; `Disconnected` if the server is
    /// gone.
    ///
    /// # Source
    /// CPython's `BaseManager.get_server().serve_forever()`.
    #[doc(alias = "serve_forever")]
    pub fn bind(mut self, address: impl TryInto<Address, Error: Into<Error>>) -> Result<Address> {
        check_key(&self.serve.key)?;
        let address = address.try_into().map_err(Into::into)?;
        self.serve.place = Place::of(&address)?;
        if let Some((certificate, key)) = &mut self.serve.tls {
            for path in [certificate, key] {
                *path = std::path::absolute(&*path)
                    .map_err(|error| Error::os("find a file for TLS", error))?;
            }
        }
        let ask = self.manager.client().ask(Op::Serve, 0)?;
        let is_file = matches!(self.serve.place, Place::Path(_));
        let served: Served = managed::call(ask, &(self.serve,)).map_err(Error::from)?;
        let address = served.into_result()?;
        if is_file {
            self.manager.has_file();
        }
        Ok(address)
    }
}

impl fmt::Debug for ServeBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("ServeBuilder")
            .field("limits", &self.serve.limits)
            .finish_non_exhaustive()
    }
}

fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a manager is served to those who have a key, and this one has no bytes",
        ));
    }
    Ok(())
}

/// Connects to a manager that is served: from [`Manager::remote`].
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use bunshin::{ErrorKind, Manager};
///
/// let nobody = Manager::remote("secret").timeout(Duration::from_secs(1)).connect("@nobody.serves");
/// assert_eq!(nobody.unwrap_err().kind(), ErrorKind::Os);
/// ```
#[derive(Clone)]
#[must_use = "nothing is connected until `connect` is called"]
pub struct RemoteBuilder {
    key: Vec<u8>,
    builder: connection::ClientBuilder,
    limit: usize,
    is_secured: bool,
}

impl fmt::Debug for RemoteBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("RemoteBuilder")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl RemoteBuilder {
    pub(super) fn new(key: Vec<u8>) -> Self {
        Self {
            builder: connection::Client::builder()
                .authkey(key.clone())
                .max_message_bytes(MESSAGE_LIMIT)
                .timeout(HANDSHAKE),
            key,
            limit: MESSAGE_LIMIT,
            is_secured: false,
        }
    }

    /// The longest answer that is taken, and, if the server takes no less, the longest
    /// request; default 64 MiB.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self.builder = self.builder.max_message_bytes(bytes);
        self
    }

    /// The time for a connection, until both ends have shown their keys; default 20 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.builder = self.builder.timeout(timeout);
        self
    }

    /// Carries everything under TLS, and wants a certificate for `server`, a name or an
    /// IP address.
    ///
    /// See [`tls::client_config`](crate::tls::client_config) for a configuration from files.
    ///
    /// # Errors
    /// `InvalidInput` if `server` is no name.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, server: &str, config: Arc<rustls::ClientConfig>) -> Result<Self> {
        self.builder = self.builder.tls(server, config)?;
        self.is_secured = true;
        Ok(self)
    }

    /// Connects, and becomes a client of the server there.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`](crate::ClientBuilder::connect); `InvalidInput` also for a
    /// key without bytes; `Busy` if the server has as many connections as it takes.
    pub fn connect(self, address: impl TryInto<Address, Error: Into<Error>>) -> Result<Manager> {
        check_key(&self.key)?;
        let address = address.try_into().map_err(Into::into)?;
        let route = Route {
            address,
            builder: self,
        };
        Ok(Manager::of(Client::far(None, route)?))
    }
}

/// How a server over a network is reached.
#[derive(Clone)]
pub(super) struct Route {
    address: Address,
    builder: RemoteBuilder,
}

/// The same inside a message to another process of this machine.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct RouteForm {
    place: Place,
    key: Vec<u8>,
    limit: u64,
}

impl Route {
    /// What another process needs to reach the server too.
    pub(super) fn form(&self) -> Result<RouteForm> {
        if self.builder.is_secured {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a proxy over TLS cannot be sent to another process, which has not what TLS \
                 needs: connect there too, and find the object by its name",
            ));
        }
        Ok(RouteForm {
            place: Place::of(&self.address)?,
            key: self.builder.key.clone(),
            limit: self.builder.limit as u64,
        })
    }

    pub(super) fn of(form: RouteForm) -> Self {
        let limit = usize::try_from(form.limit).unwrap_or(usize::MAX);
        Self {
            address: form.place.into(),
            builder: RemoteBuilder::new(form.key).max_message_bytes(limit),
        }
    }

    /// Makes a connection and says what it is for; gives the server's answer too.
    pub(super) fn open(&self, hello: GuestHello) -> Result<(Link, Option<Welcome>)> {
        let connection = self.builder.builder.connect::<(), ()>(&self.address)?;
        let (link, _) = connection.into_link();
        let what = || format!("become a client of the manager at {}", self.address);
        let failed = |failure| match failure {
            Failure::Disconnected => Error::new(
                ErrorKind::Disconnected,
                format!("{}: the server has closed the connection", what()),
            ),
            Failure::NotYet => Error::new(ErrorKind::TimedOut, what()),
            Failure::Other(error) => Error::because(error.kind(), what(), error),
        };
        let patience = Patience::within(HANDSHAKE);
        link.send(&hello.write(), patience).map_err(failed)?;
        let bytes = link.receive(patience).map_err(failed)?;
        let reply = ReplyHead::parse(&bytes)?;
        let field = { reply.fields }.next().map_or(&[][..], |field| field.bytes);
        match (reply.status, hello) {
            (Status::Ok, GuestHello::Session) => Ok((link, Some(Welcome::parse(field)?))),
            (Status::Ok, _) => Ok((link, None)),
            _ => Err(Error::new(
                kind_of(reply.number),
                format!("{}: {}", what(), String::from_utf8_lossy(field)),
            )),
        }
    }
}

/// A client's way to a server over a network.
pub(super) struct Far {
    pub(super) route: Route,
    /// Open for as long as this process is a client.
    session: Link,
    token: Token,
    limit: usize,
    /// Connections that have carried no call for so long may have been closed.
    pub(super) idle: Option<Duration>,
}

impl Far {
    pub(super) fn begin(route: Route) -> Result<Self> {
        let (session, welcome) = route.open(GuestHello::Session)?;
        let welcome = welcome
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a manager's server gave no welcome"))?;
        let limit = usize::try_from(welcome.limit).unwrap_or(usize::MAX);
        Ok(Self {
            limit: limit.min(route.builder.limit),
            route,
            session,
            token: welcome.token,
            // Half of it, as neither clock nor network are exact.
            idle: (welcome.idle_ms != 0).then(|| Duration::from_millis(welcome.idle_ms) / 2),
        })
    }

    /// Whether the server has ended the session, or is gone.
    pub(super) fn is_over(&self) -> bool {
        // Nothing comes over it but its end.
        self.session.poll(Patience::Never).unwrap_or(true)
    }

    /// Another connection of this client's.
    pub(super) fn connect(&self, is_direct: bool) -> Result<Link> {
        if self.is_over() {
            return Err(super::client::disconnected());
        }
        let hello = if is_direct {
            GuestHello::Direct(self.token)
        } else {
            GuestHello::Link(self.token)
        };
        let opened = self.route.open(hello);
        let (mut link, _) = opened.map_err(|error| self.or_gone(error))?;
        link.set_limit(self.limit);
        Ok(link)
    }

    /// A connection that keeps objects while it lies in a message.
    pub(super) fn lease(&self, number: u64) -> Result<Link> {
        let opened = self.route.open(GuestHello::Lease(self.token, number));
        Ok(opened.map_err(|error| self.or_gone(error))?.0)
    }

    /// A server that is gone refuses connections, and does so in many ways.
    fn or_gone(&self, error: Error) -> Error {
        if self.is_over() {
            return super::client::disconnected();
        }
        error
    }
}

/// A remote object inside a message to another process of the client's machine.
pub(super) fn depart(far: &Far, number: u64) -> Result<std::os::fd::OwnedFd> {
    let link = far.lease(number)?;
    crate::sys::socket::duplicate(link.wire().socket())
        .map_err(|error| Error::os("send a manager's proxy", error))
}

/// Takes one out of such a message; the handle that came along keeps it meanwhile.
pub(super) fn arrive(id: u64, object: u64, form: RouteForm) -> Result<Referent> {
    let client = Client::far(Some(id), Route::of(form))?;
    client.adopt(object)?;
    Ok(Referent::held(&client, object))
}

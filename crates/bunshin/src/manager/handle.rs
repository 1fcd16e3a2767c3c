//! The manager: what the process that started a server holds of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{Ask, Client, new_number};
use super::managed::{self, CallError, Managed, Proxy};
use super::message::{FOREVER, Kind, Op};
use super::proxy::barrier::BarrierProxy;
use super::proxy::condition::ConditionProxy;
use super::proxy::dict::DictProxy;
use super::proxy::event::EventProxy;
use super::proxy::list::{ListProxy, fields};
use super::proxy::lock::{LockProxy, RLockProxy};
use super::proxy::namespace::NamespaceProxy;
use super::proxy::pool::{PoolProxy, Workers};
use super::proxy::queue::QueueProxy;
use super::proxy::semaphore::SemaphoreProxy;
use super::proxy::value::{ArrayProxy, ValueProxy};
use super::referent::Referent;
use super::remote::{RemoteBuilder, ServeBuilder};
use super::server::{self, Start};
use super::wire::Handle;
use crate::connection::Address;
use crate::error::{Error, Result};
use crate::process::{ExitStatus, Process, ProcessBuilder, StartMethod, Target};
use crate::sys::socket;

/// How long a server that was told to end may take, before it is killed.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a manager's server is to be started.
///
/// # Examples
/// ```
/// use bunshin::{Manager, StartMethod};
///
/// let manager = Manager::builder().name("store").start_method(StartMethod::Spawn).build()?;
/// assert!(manager.list([1, 2])?.contains(&2)?);
/// # Ok::<(), bunshin::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder starts nothing until `build` is called"]
pub struct ManagerBuilder {
    process: ProcessBuilder,
}

impl ManagerBuilder {
    /// The name of the server's process. By default `Manager`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.process = self.process.name(name);
        self
    }

    /// The start method. By default that of [`start_method`](crate::start_method).
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.process = self.process.start_method(method);
        self
    }

    /// Starts the server.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn build(self) -> Result<Manager> {
        let os = |error| Error::os("start a manager's server", error);
        let (ours, theirs) = socket::packet_pair().map_err(os)?;
        let id = new_number();
        let start = Start {
            id,
            door: Handle(theirs),
        };
        let process = self.process.daemon(true).start(
            |start: Start| server::serve(start).map_err(|error| error.to_string()),
            (start,),
        )?;
        let client = Client::at(id, || Ok(ours))?;
        Ok(Manager {
            client,
            process: Some(process),
            has_file: AtomicBool::new(false),
        })
    }
}

/// A server process that holds objects for all processes, and what makes objects in it.
///
/// The objects are reached by proxies, which go to any process in any message: as arguments,
/// through pipes, and into each other. An object lives as long as there is a proxy to it, in
/// any process, on its way in a message, or inside another object. Objects that hold each
/// other in a circle are collected once there are many of them. Calls of many clients run side
/// by side: one that waits, for a lock or for an item, delays no other.
///
/// The server ends when the manager is dropped or its process ends, and when it is killed:
/// all calls then fail with `Disconnected` at once. A client that dies, at whatever moment,
/// costs its own call, and gives back its locks.
///
/// # Source
/// CPython's `multiprocessing.Manager`, `SyncManager`.
///
/// # Examples
/// ```
/// use bunshin::{Manager, Process, manager::{DictProxy, ListProxy}};
///
/// let manager = Manager::new()?;
/// let scores = manager.dict::<String, ListProxy<u32>>()?;
/// scores.insert("ann", &manager.list([3])?)?;
///
/// fn add(scores: DictProxy<String, ListProxy<u32>>) -> Result<(), String> {
///     let ann = scores.get("ann").map_err(|error| error.to_string())?;
///     ann.ok_or("nobody")?.push(&4).map_err(|error| error.to_string())
/// }
/// Process::start(add, (scores.clone(),))?.result()??;
/// assert_eq!(scores.get("ann")?.unwrap().to_vec()?, [3, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "SyncManager")]
pub struct Manager {
    client: Arc<Client>,
    /// Nothing if the server is not this process's child, but reached over a network.
    process: Option<Process<Result<(), String>>>,
    /// Whether the server has a file to remove when it ends.
    has_file: AtomicBool,
}

impl Manager {
    /// Starts a server with the default start method.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Starts a server with a name or another start method.
    pub fn builder() -> ManagerBuilder {
        ManagerBuilder {
            process: Process::builder().name("Manager"),
        }
    }

    /// Has the server take clients over a network, or from programs that are no relatives: those
    /// that have this key.
    ///
    /// The key is never sent. Without [TLS](ServeBuilder::tls), what follows is neither hidden
    /// nor protected from somebody who sits in the middle.
    #[doc(alias = "get_server")]
    pub fn serve(&self, authkey: impl Into<Vec<u8>>) -> ServeBuilder<'_> {
        ServeBuilder::new(self, authkey.into())
    }

    /// Connects to a manager that another program [serves](Self::serve).
    ///
    /// What this gives makes objects there, and their proxies work as others do, with these
    /// differences:
    ///
    /// - Objects of the program's own, and pools, are not made from here (`Unsupported`): their
    ///   code is named by its place in the program. Where they were
    ///   [published](Self::publish), their methods can be called; both programs must then have
    ///   the type from the same source.
    /// - Values that hold connections, queues, locks, shared memory, or proxies of other managers
    ///   stay on their machine: `Unsupported`, with the type.
    /// - The session lasts as long as this process, or until its connection is cut: all proxies
    ///   are `Disconnected` then, for good, and the server takes back what they held. Whoever
    ///   connects again finds the objects that are published, and those that others keep.
    ///
    /// A machine that vanishes is noticed after about two minutes, by either side.
    ///
    /// # Errors
    /// As [`RemoteBuilder::connect`].
    ///
    /// # Source
    /// CPython's `BaseManager.connect`.
    ///
    /// # Examples
    /// ```
    /// let manager = bunshin::Manager::new()?;
    /// let address = manager.serve("secret").bind("@")?;
    /// let there = bunshin::Manager::connect(&address, "secret")?;
    /// assert_eq!(there.list([1, 2])?.to_vec()?, [1, 2]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn connect(
        address: impl TryInto<Address, Error: Into<Error>>,
        authkey: impl Into<Vec<u8>>,
    ) -> Result<Self> {
        Self::remote(authkey).connect(address)
    }

    /// Connects with TLS, or with other limits.
    pub fn remote(authkey: impl Into<Vec<u8>>) -> RemoteBuilder {
        RemoteBuilder::new(authkey.into())
    }

    pub(super) fn of(client: Arc<Client>) -> Self {
        Self {
            client,
            process: None,
            has_file: AtomicBool::new(false),
        }
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    pub(super) fn has_file(&self) {
        self.has_file.store(true, Ordering::Relaxed);
    }

    /// Gives a value a name, under which all clients of the server [find](Self::find) it: a proxy,
    /// or something with several of them. Says whether there was one of that name, which it
    /// replaces.
    ///
    /// What the value names lives as long as the name.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone; `Encode` if the value cannot be encoded.
    ///
    /// # Examples
    /// ```
    /// use bunshin::{ErrorKind, Manager, manager::{DictProxy, ListProxy}};
    ///
    /// let manager = Manager::new()?;
    /// manager.publish("names", &manager.list(["ann".to_owned()])?)?;
    /// let names: ListProxy<String> = manager.find("names")?.ok_or("no names")?;
    /// assert_eq!(names.to_vec()?, ["ann"]);
    /// let other = manager.find::<DictProxy<u8, u8>>("names");
    /// assert_eq!(other.unwrap_err().kind(), ErrorKind::TypeMismatch);
    /// assert!(manager.unpublish("names")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn publish<T: Serialize>(&self, name: &str, value: &T) -> Result<bool> {
        let ask = self.client.ask(Op::Publish, 0)?.text(name)?;
        let ask = ask.text(std::any::type_name::<T>())?.field(value)?;
        let answer = ask.call()?;
        answer.check()?;
        Ok(answer.number != 0)
    }

    /// Takes a name back; whether there was one.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    pub fn unpublish(&self, name: &str) -> Result<bool> {
        let answer = self.client.ask(Op::Publish, 0)?.text(name)?.call()?;
        answer.check()?;
        Ok(answer.number != 0)
    }

    /// Finds what was published under a name, if something was.
    ///
    /// Types are told apart by their names, as the compiler writes them.
    ///
    /// # Errors
    /// `TypeMismatch` if it is something else; `Disconnected` if the server is gone.
    pub fn find<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let ask = self.client.ask(Op::Find, 0)?.text(name)?;
        ask.text(std::any::type_name::<T>())?.call()?.optional()
    }

    fn create(&self, kind: Kind) -> Result<Ask> {
        Ok(self.client.ask(Op::Create, 0)?.number(kind as u64))
    }

    fn made(&self, ask: Ask) -> Result<Referent> {
        let answer = ask.call()?;
        answer.check()?;
        Ok(Referent::held(&self.client, answer.number))
    }

    fn plain(&self, kind: Kind) -> Result<Referent> {
        self.made(self.create(kind)?)
    }

    /// Makes an empty dict.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    pub fn dict<K, V>(&self) -> Result<DictProxy<K, V>> {
        Ok(DictProxy::of(self.plain(Kind::Dict)?))
    }

    /// Makes a list of some values.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone; `Encode` if a value cannot be encoded.
    pub fn list<T: Serialize>(&self, values: impl IntoIterator<Item = T>) -> Result<ListProxy<T>> {
        let ask = fields(self.create(Kind::List)?, values)?;
        Ok(ListProxy::of(self.made(ask)?))
    }

    /// Makes an empty namespace.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "Namespace")]
    pub fn namespace(&self) -> Result<NamespaceProxy> {
        Ok(NamespaceProxy::of(self.plain(Kind::Dict)?))
    }

    /// Makes a place for one value.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone; `Encode` if the value cannot be encoded.
    #[doc(alias = "Value")]
    pub fn value<T: Serialize>(&self, value: T) -> Result<ValueProxy<T>> {
        let ask = self.create(Kind::Cell)?.field(&value)?;
        Ok(ValueProxy::of(self.made(ask)?))
    }

    /// Makes an array of some values, whose length stays.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone; `Encode` if a value cannot be encoded.
    #[doc(alias = "Array")]
    pub fn array<T: Serialize>(
        &self,
        values: impl IntoIterator<Item = T>,
    ) -> Result<ArrayProxy<T>> {
        let ask = fields(self.create(Kind::List)?, values)?;
        Ok(ArrayProxy::of(self.made(ask)?))
    }

    /// Makes a lock.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "Lock")]
    pub fn lock(&self) -> Result<LockProxy> {
        Ok(LockProxy::of(self.plain(Kind::Lock)?))
    }

    /// Makes a lock that its holder can take again.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "RLock")]
    pub fn rlock(&self) -> Result<RLockProxy> {
        Ok(RLockProxy::of(self.plain(Kind::Lock)?))
    }

    /// Makes a semaphore with so many permits, to which any number can be added.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "Semaphore")]
    pub fn semaphore(&self, permits: usize) -> Result<SemaphoreProxy> {
        let ask = self.create(Kind::Semaphore)?.second(permits as u64);
        Ok(SemaphoreProxy::of(self.made(ask.bound(FOREVER))?))
    }

    /// Makes a semaphore that never has more permits than these.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "BoundedSemaphore")]
    pub fn bounded_semaphore(&self, permits: usize) -> Result<SemaphoreProxy> {
        let ask = self.create(Kind::Semaphore)?.second(permits as u64);
        Ok(SemaphoreProxy::of(self.made(ask.bound(permits as u64))?))
    }

    /// Makes a condition with a lock of its own.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "Condition")]
    pub fn condition(&self) -> Result<ConditionProxy> {
        Ok(ConditionProxy::of(self.plain(Kind::Condition)?))
    }

    /// Makes an event that is not set.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "Event")]
    pub fn event(&self) -> Result<EventProxy> {
        Ok(EventProxy::of(self.plain(Kind::Event)?))
    }

    /// Makes a barrier for so many parties.
    ///
    /// # Errors
    /// `InvalidInput` for none; `Disconnected` if the server is gone.
    #[doc(alias = "Barrier")]
    pub fn barrier(&self, parties: usize) -> Result<BarrierProxy> {
        let ask = self.create(Kind::Barrier)?.second(parties as u64);
        Ok(BarrierProxy::of(self.made(ask)?))
    }

    /// Makes a queue with room for so many items; 0 for any number.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "Queue")]
    #[doc(alias = "JoinableQueue")]
    pub fn queue<T>(&self, bound: usize) -> Result<QueueProxy<T>> {
        let ask = self.create(Kind::Queue)?.second(bound as u64);
        Ok(QueueProxy::of(self.made(ask)?))
    }

    /// Starts a pool whose workers are the server's.
    ///
    /// # Errors
    /// [`CallError::Panicked`] with the reason, if it cannot be started;
    /// [`CallError::Disconnected`] if the server is gone.
    #[doc(alias = "Pool")]
    pub fn pool(&self, workers: usize) -> Result<PoolProxy, CallError> {
        let ask = self.client.ask(Op::Make, 0)?;
        let number = managed::make(ask, Workers::start, &(workers,))?;
        Ok(PoolProxy::of(Referent::held(&self.client, number)))
    }

    /// Makes an object of the program's own: `make` runs in the server, on the arguments.
    ///
    /// [`managed`](macro@crate::managed) writes a `new` for each proxy that does this.
    ///
    /// # Errors
    /// [`CallError::Panicked`] if `make` panicked; [`CallError::Arguments`] if the arguments
    /// did not get there; [`CallError::Disconnected`] if the server is gone.
    pub fn manage<F, Args>(
        &self,
        make: F,
        arguments: Args,
    ) -> Result<<F::Output as Managed>::Proxy, CallError>
    where
        F: Target<Args>,
        F::Output: Managed,
        Args: Serialize + DeserializeOwned,
    {
        let ask = self.client.ask(Op::Make, 0)?;
        let number = managed::make(ask, make, &arguments)?;
        let proxy = Proxy::of(Referent::held(&self.client, number));
        Ok(<F::Output as Managed>::Proxy::from(proxy))
    }

    /// How many objects the server holds, and how many processes are its clients, this one
    /// among them.
    ///
    /// # Errors
    /// `Disconnected` if the server is gone.
    #[doc(alias = "_number_of_objects")]
    pub fn census(&self) -> Result<(usize, usize)> {
        let mut answer = self.client.ask(Op::Census, 0)?.call()?;
        answer.check()?;
        let objects = answer.number as usize;
        Ok((objects, answer.next_number().unwrap_or(0) as usize))
    }

    /// The process id of the server, if it is a child of this process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Ends the server, and waits for its end: 2 s at most, then it is killed.
    ///
    /// The program's own objects are dropped first. All proxies are `Disconnected` from then on.
    ///
    /// A manager that was [connected](Self::connect) is only let go of; its server goes on.
    ///
    /// # Errors
    /// `Os` if the server was collected by something else in this process.
    pub fn shutdown(mut self) -> Result<Option<ExitStatus>> {
        let Some(process) = self.process.take() else {
            return Ok(None);
        };
        if let Ok(ask) = self.client.ask(Op::Shutdown, 0) {
            // One that is gone or stopped does not answer; it is killed below.
            let _ = ask.soon(FAREWELL).call();
        }
        if let Some(status) = process.join_timeout(FAREWELL)? {
            return Ok(Some(status));
        }
        process.kill()?;
        process.join().map(Some)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // It is killed when its handle is dropped, and would leave its file behind.
        if self.process.is_some() && *self.has_file.get_mut() {
            if let Ok(ask) = self.client.ask(Op::Shutdown, 0) {
                let _ = ask.soon(FAREWELL).call();
            }
            if let Some(process) = &self.process {
                let _ = process.join_timeout(FAREWELL);
            }
        }
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

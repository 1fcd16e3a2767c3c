//! Objects in a server process, and proxies to them.
//!
//! [`Manager`] starts the server and makes objects; the types here are what it gives.
//!
//! | Kind | Proxy |
//! |---|---|
//! | data | [`DictProxy`], [`ListProxy`], [`NamespaceProxy`], [`ValueProxy`], [`ArrayProxy`] |
//! | waiting for each other | [`LockProxy`], [`RLockProxy`], [`SemaphoreProxy`], [`ConditionProxy`], [`EventProxy`], [`BarrierProxy`] |
//! | passing things on | [`QueueProxy`] |
//! | work | [`PoolProxy`] |
//! | the program's own | [`Proxy`], by [`managed`](macro@crate::managed) |

// - `handle`: the manager and its builder; `remote` the same over a network.
// - `proxy`: what clients hold of objects; `managed` those of the program's own.
// - `client`: this process as a client: connections and requests; `referent` references, and
//   proxies in messages.
// - `message`: what the two sides tell each other; `wire` a connection.
// - `server`: the server's process; `direct` its threads for the program's own objects;
//   `serving` those that take connections over a network, `guests` what becomes of these.
// - `fuzzing`: the way in for a fuzzer.
// - `registry`: objects and who refers to them; `object` what they do; `circles` those that
//   nobody refers to but each other.

mod circles;
mod client;
mod direct;
#[cfg(any(fuzzing, all(test, not(loom))))]
mod fuzzing;
mod guests;
mod handle;
mod managed;
mod message;
mod object;
mod proxy;
mod referent;
mod registry;
mod remote;
mod server;
mod serving;
mod wire;

#[cfg(any(fuzzing, all(test, not(loom))))]
pub(crate) use fuzzing::fuzz_messages;
pub use handle::{Manager, ManagerBuilder};
pub use managed::{CallError, Managed, MethodCall, Proxy, macro_support};
pub use proxy::barrier::{BarrierError, BarrierProxy};
pub use proxy::condition::{ConditionGuard, ConditionProxy};
pub use proxy::dict::DictProxy;
pub use proxy::event::EventProxy;
pub use proxy::list::ListProxy;
pub use proxy::lock::{LockProxy, LockProxyGuard, RLockProxy};
pub use proxy::namespace::NamespaceProxy;
pub use proxy::pool::PoolProxy;
pub use proxy::queue::QueueProxy;
pub use proxy::semaphore::{SemaphorePermit, SemaphoreProxy};
pub use proxy::value::{ArrayProxy, ValueProxy};
pub use remote::{RemoteBuilder, ServeBuilder};

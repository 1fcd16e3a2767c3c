//! The README and the pages of `docs/guide`: their programs run as doc tests.

#[doc = include_str!("../../../README.md")]
mod readme {}

#[doc = include_str!("../../../docs/guide/context.md")]
mod context {}
#[doc = include_str!("../../../docs/guide/lock.md")]
mod lock {}
#[doc = include_str!("../../../docs/guide/pipe.md")]
mod pipe {}
#[doc = include_str!("../../../docs/guide/pool.md")]
mod pool {}

#[doc = include_str!("../../../docs/guide/shared_memory.md")]
mod shared_memory {}

#[doc = include_str!("../../../docs/guide/shared_map.md")]
mod shared_map {}

#[doc = include_str!("../../../docs/guide/sync.md")]
mod sync {}

#[doc = include_str!("../../../docs/guide/listener.md")]
mod listener {}
#[doc = include_str!("../../../docs/guide/manager.md")]
mod manager {}

#[doc = include_str!("../../../docs/guide/queue.md")]
mod queue {}
#[doc = include_str!("../../../docs/guide/process.md")]
mod process {}
#[doc = include_str!("../../../docs/guide/shared.md")]
mod shared {}
#[cfg(feature = "tls")]
#[doc = include_str!("../../../docs/guide/tls.md")]
mod tls {}
#[cfg(feature = "tokio")]
#[doc = include_str!("../../../docs/guide/tokio.md")]
mod tokio {}
#[cfg(feature = "tracing")]
#[doc = include_str!("../../../docs/guide/tracing.md")]
mod tracing {}

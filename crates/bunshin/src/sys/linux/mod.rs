//! Linux, kernel 5.10 or later, with glibc.

pub(crate) mod awake;
pub(crate) mod cpus;
pub(crate) mod grace;
mod groups;
pub(crate) mod image;
pub(crate) mod interrupt;
pub(crate) mod leases;
pub(crate) mod memory;
pub(crate) mod mutex;
pub(crate) mod named;
pub(crate) mod network;
pub(crate) mod oom;
pub(crate) mod pages;
#[cfg(feature = "tracing")]
pub(crate) mod pipe;
pub(crate) mod poller;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod socket;
pub(crate) mod thread;
pub(crate) mod words;

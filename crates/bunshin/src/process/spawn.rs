//! Start method `spawn`: this program started again.

use std::os::fd::{AsFd, OwnedFd};

use super::launcher;
use crate::error::{Error, Result};
use crate::sys::process::{self, Started};

/// The role of a child that runs one target.
pub(crate) const CHILD: &str = "child";
/// The role of the forkserver.
pub(crate) const SERVER: &str = "server";

/// Starts this program as a child, or as the forkserver, that reads from `control`.
pub(crate) fn start(role: &'static str, control: OwnedFd) -> Result<Started> {
    launcher::run(move || {
        process::start_self(role, control.as_fd())
            .map_err(|error| Error::os(format!("start a {role} process"), error))
    })
}

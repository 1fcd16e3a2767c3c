//! One file per peer. Each function measures that peer doing a row's work and
//! returns seconds; `rows.rs` says which rows it takes part in.

pub mod asynchronous;
pub mod bare;
pub mod bunshin;
pub mod bunshin_queue;
pub mod bunshin_sync;
pub mod cpython;
pub mod cpython_pool;
pub mod crossmist;
pub mod iceoryx2;
pub mod ipc_channel;
pub mod manager;
pub mod memcpy;
pub mod parking_lot;
pub mod posix;
pub mod procspawn;
pub mod python;
pub mod rayon;
pub mod records;
pub mod ring;
pub mod shared_memory;
pub mod smaller;
pub mod stream;
pub mod threads;

use std::ffi::OsString;

use crate::measure::Result;

/// If this process was started by a peer as its child, becomes that child and
/// does not return. Each peer has its own way to tell; Bunshin's children
/// have been taken over before `main`.
pub fn become_child() {
    let role = std::env::args_os().nth(1);
    let argument = std::env::args_os().nth(2);
    let done = match role.as_ref().and_then(|role| role.to_str()) {
        Some(bare::CHILD_ROLE) => Some(bare::exec_child(argument)),
        Some(ipc_channel::CHILD_ROLE) => Some(ipc_channel::one_shot_child(argument)),
        _ => None,
    };
    if let Some(done) = done {
        if let Err(error) = &done {
            eprintln!("in the child: {error}");
        }
        std::process::exit(i32::from(done.is_err()));
    }
    ::procspawn::init();
    ::crossmist::init();
}

/// The number that a child's argument holds.
fn parse(argument: Option<OsString>) -> Result<u64> {
    let text = argument.ok_or("a child without its argument")?;
    Ok(text.to_string_lossy().parse()?)
}

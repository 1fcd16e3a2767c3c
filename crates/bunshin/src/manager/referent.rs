//! What a proxy holds: a reference to an object in a server, and how it travels.
//!
//! A proxy in a message takes something along that the server has been told to keep the object
//! for: a door, or a connection over the network. As long as the message lies somewhere, the
//! kernel keeps it open, and when the message is lost its end is seen.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::client::{Ask, Client};
use super::message::Op;
use super::remote::{self, RouteForm};
use crate::codec::attachments::{Incoming, Outgoing};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mutex::ForkMutex;
use crate::sys::{socket, thread};

/// What a proxy holds: a reference to an object, which ends with it.
pub(super) struct Referent {
    client: Arc<Client>,
    object: u64,
    /// The same in a forked child, which is a client of its own.
    adopted: ForkMutex<Option<(u32, Arc<Referent>)>>,
}

impl Referent {
    /// One that the server has counted already.
    pub(super) fn held(client: &Arc<Client>, object: u64) -> Self {
        Self {
            client: Arc::clone(client),
            object,
            adopted: ForkMutex::new(None),
        }
    }

    /// Which object of which server this is.
    pub(super) fn key(&self) -> (u64, u64) {
        (self.client.id, self.object)
    }

    /// Begins a request to the object.
    #[inline]
    pub(super) fn ask(&self, op: Op) -> Result<Ask> {
        if self.client.generation == thread::generation() {
            return self.client.ask(op, self.object);
        }
        let own = self.in_this_process()?;
        own.client.ask(op, own.object)
    }

    /// The same object, held by this forked child.
    fn in_this_process(&self) -> Result<Arc<Referent>> {
        let mut adopted = self.adopted.lock();
        match &*adopted {
            Some((generation, own)) if *generation == thread::generation() => Ok(Arc::clone(own)),
            _ => {
                let client = self.client.again()?;
                client.adopt(self.object)?;
                let own = Arc::new(Self::held(&client, self.object));
                // What another process had here is not this one's to drop.
                if let Some(before) = adopted.replace((thread::generation(), Arc::clone(&own))) {
                    std::mem::forget(before);
                }
                Ok(own)
            }
        }
    }

    /// Puts the object into the message that is being encoded.
    pub(super) fn depart(&self) -> Result<Form> {
        if self.client.generation != thread::generation() {
            return self.in_this_process()?.depart();
        }
        if let Some(index) = Outgoing::name(self.client.id, self.object)? {
            return Ok(Form::Here(index));
        }
        let route = match self.client.over_network() {
            Some(far) => Some((far, far.route.form()?)),
            None => None,
        };
        // The first proxy in a message makes the door, the others are added to it.
        let (handle, number, is_new) = Outgoing::attach_common(self.client.id, || {
            let number = self.client.leases.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some((far, _)) = &route {
                let door = remote::depart(far, number)?;
                self.ask(Op::Lease)?.number(number).call()?.check()?;
                return Ok((door, number));
            }
            let (door, theirs) = socket::packet_pair()
                .map_err(|error| Error::os("send a manager's proxy", error))?;
            let ask = self.ask(Op::Lease)?.number(number).handle(theirs);
            ask.call()?.check()?;
            Ok((door, number))
        })?;
        if !is_new {
            self.ask(Op::Lease)?.number(number).call()?.check()?;
        }
        Ok(match route {
            Some((_, route)) => Form::Far(self.client.id, self.object, handle, route),
            None => Form::Away(self.client.id, self.object, handle),
        })
    }

    /// Takes an object out of the message that is being decoded.
    pub(super) fn arrive(form: Form) -> Result<Self> {
        match form {
            Form::Here(index) => Incoming::take_named(index)?
                .downcast::<Self>()
                .map(|referent| *referent)
                .map_err(|_| Error::new(ErrorKind::Corrupt, "a message names another object")),
            Form::Far(id, object, handle, route) => {
                // It keeps the object meanwhile; and without one, this has come from another
                // machine, which is not to say where this process connects to.
                let _kept = Incoming::share(handle)?;
                remote::arrive(id, object, route)
            }
            Form::Away(id, object, handle) => {
                let client = Client::at(id, || Incoming::share(handle))?;
                match client.adopt(object) {
                    // A server that is gone is an error of the calls that follow.
                    Err(error) if !error.is_disconnected() => Err(error),
                    _ => Ok(Self::held(&client, object)),
                }
            }
        }
    }
}

impl Drop for Referent {
    fn drop(&mut self) {
        if self.client.generation == thread::generation() {
            self.client.release(self.object);
        }
    }
}

/// An object inside a message.
#[derive(Serialize, serde::Deserialize)]
pub(super) enum Form {
    /// In a message to or from its own server: which of the objects that the message names.
    #[serde(rename = "h")]
    Here(u32),
    /// In another message: server, object, and which handle is a door to it.
    #[serde(rename = "a")]
    Away(u64, u64, u32),
    /// An object of a server over a network: what its client calls that server, the object,
    /// which handle keeps it, and how the server is reached.
    #[serde(rename = "f")]
    Far(u64, u64, u32, RouteForm),
}

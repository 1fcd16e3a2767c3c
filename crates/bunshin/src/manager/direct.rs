//! Calls of the program's own objects, in the server: a thread for each client's thread.
//!
//! Such a thread receives, calls the method and answers by itself. A method that takes long
//! delays nobody but its caller, and methods with `&self` run side by side.

use std::sync::Arc;

use super::client::{Client, Referent};
use super::managed::{Entering, Making, MethodCall, UserObject};
use super::message::{FIELD, Op, REQUEST, Request};
use super::object::Object;
use super::registry::{Registry, Session, gone, lock};
use super::wire::Wire;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image;
use crate::transport::Patience;
use crate::transport::channel::Failure;
use crate::transport::receiver::Message;

/// Starts the thread for one connection. It ends with its client.
pub(super) fn start(wire: Wire, session: Arc<Session>, registry: Arc<Registry>) -> Result<()> {
    std::thread::Builder::new()
        .name("bunshin-call".into())
        .spawn(move || {
            while let Ok(message) = wire.receive(Patience::Forever) {
                let mut call = MethodCall::new(&registry, wire.heap());
                let number = match serve(message, &mut call, &session, &registry) {
                    Ok(number) => number,
                    Err(error) => {
                        call.fail(&error);
                        0
                    }
                };
                match call.send(&wire, &session, number) {
                    Ok(()) => {}
                    // Too large for what memory there is: the client is told that instead.
                    Err(Failure::Other(error)) => {
                        call.fail(&error);
                        if call.send(&wire, &session, 0).is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        })
        .map_err(|error| Error::os("start a thread of a manager's server", error))?;
    Ok(())
}

/// Does what is asked; gives the number of the reply.
fn serve(
    mut message: Message,
    call: &mut MethodCall,
    session: &Arc<Session>,
    registry: &Arc<Registry>,
) -> Result<u64> {
    let mut incoming = std::mem::take(&mut message.incoming);
    let request = Request::parse(message.bytes())?;
    call.begin(request.call);
    let (op, object, number) = (request.op, request.object, request.number);
    if let Some(field) = { request.fields }.next() {
        // They stay while the arguments are made of them.
        let pinned = field
            .named()
            .map(|number| session.get(number))
            .collect::<Result<Vec<_>>>()?;
        if !pinned.is_empty() {
            let own = Client::at(registry.id, || Err(gone()))?;
            let mut named: Vec<Box<dyn std::any::Any + Send>> = Vec::new();
            for slot in &pinned {
                own.adopt(slot.number)?;
                named.push(Box::new(Referent::held(&own, slot.number)));
            }
            incoming = incoming.with_named(named);
        }
    }
    call.arguments(message, REQUEST + FIELD, incoming);
    let no_entry = || {
        Error::new(
            ErrorKind::Corrupt,
            "a request names a place that is not in this program",
        )
    };
    match op {
        Op::Make => {
            let entry = image::entry_at::<Making>(number).ok_or_else(no_entry)?;
            let mut making = Making { call, made: None };
            entry(&mut making);
            if let Some(made) = making.made {
                let slot = registry.insert(Object::User(UserObject::new(made)));
                session.hold(&slot);
                return Ok(slot.number);
            }
        }
        Op::Method | Op::Enter => {
            let slot = session.get(object)?;
            let content = match &*lock(&slot.object) {
                Object::User(own) => own.content(),
                _ => None,
            };
            let content = content.ok_or_else(|| {
                Error::new(
                    ErrorKind::TypeMismatch,
                    "a manager's object is not one of the program's own",
                )
            })?;
            if op == Op::Method {
                content.call(number, call);
            } else {
                let entry = image::entry_at::<Entering>(number).ok_or_else(no_entry)?;
                entry(&mut Entering {
                    call,
                    object: &*content,
                });
            }
        }
        _ => {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "only methods of a program's own objects are called over this connection",
            ));
        }
    }
    Ok(0)
}

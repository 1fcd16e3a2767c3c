//! Calls of the program's own objects, in the server: a thread for each client's thread.
//!
//! Such a thread receives, calls the method and answers by itself. A method that takes long
//! delays nobody but its caller, and methods with `&self` run side by side.

use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::guests::{not_from_far, patience};
use super::managed::{Entering, Making, MethodCall, UserObject};
use super::message::{FIELD, Op, REQUEST, Request};
use super::object::Object;
use super::referent::Referent;
use super::registry::{Registry, Session, gone, lock};
use super::serving::{self, Serve};
use super::wire::Wire;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image;
use crate::transport::channel::Failure;
use crate::transport::receiver::Message;

/// Starts the thread for one connection. It ends with its client.
///
/// `left` is called when it does. A connection that carries no call for as long as `idle` ends
/// too, and so does one that takes no answer in that time.
pub(super) fn start(
    wire: Wire,
    session: Arc<Session>,
    registry: Arc<Registry>,
    idle: Option<Duration>,
    left: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let run = move || {
        while let Ok(message) = wire.receive(patience(idle)) {
            if !answer(message, &wire, &session, &registry, idle) {
                break;
            }
        }
        left();
    };
    std::thread::Builder::new()
        .name("bunshin-call".into())
        .spawn(run)
        .map_err(|error| Error::os("start a thread of a manager's server", error))?;
    Ok(())
}

/// Serves a request; false if nobody is there for the answer.
fn answer(
    message: Message,
    wire: &Wire,
    session: &Arc<Session>,
    registry: &Arc<Registry>,
    idle: Option<Duration>,
) -> bool {
    let mut call = MethodCall::new(registry, wire.heap());
    let number = match serve(message, &mut call, wire.is_far(), session, registry) {
        Ok(number) => number,
        Err(error) => {
            call.fail(&error);
            0
        }
    };
    match call.send(wire, session, number, patience(idle)) {
        Ok(()) => true,
        // Too large for what memory there is, or for a network: the client is told that instead.
        Err(Failure::Other(error)) => {
            call.fail(&error);
            call.send(wire, session, 0, patience(idle)).is_ok()
        }
        Err(_) => false,
    }
}

/// Does what is asked; gives the number of the reply.
fn serve(
    mut message: Message,
    call: &mut MethodCall,
    is_far: bool,
    session: &Arc<Session>,
    registry: &Arc<Registry>,
) -> Result<u64> {
    let mut incoming = std::mem::take(&mut message.incoming);
    let request = Request::parse(message.bytes())?;
    call.begin(request.call);
    let (op, object, number) = (request.op, request.object, request.number);
    if is_far && op != Op::Method {
        return Err(not_from_far(op));
    }
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
        Op::Serve => {
            let inbox = registry.inbox.get().ok_or_else(gone)?;
            call.run(|(serve,): (Serve,)| serving::open(serve, inbox));
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

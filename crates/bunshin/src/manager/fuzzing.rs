//! What a fuzzer feeds with bytes: the parser, and all objects behind it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use super::message::{GuestHello, Hello, Kind, Op, ReplyHead, Request, Welcome};
use super::object::{Answer, Call, Caller, Object, Reply};
use super::registry::{Registry, Session, Slot, lock};

/// The objects that requests go to, one of each kind.
const KINDS: [Kind; 9] = [
    Kind::Dict,
    Kind::List,
    Kind::Cell,
    Kind::Lock,
    Kind::Semaphore,
    Kind::Condition,
    Kind::Event,
    Kind::Barrier,
    Kind::Queue,
];

/// Reads bytes as messages, and does what they ask for to one object of each kind.
///
/// The bytes are requests, each with its length in two bytes and its caller in one. Nothing
/// they hold may panic, or leave an object behind that nobody refers to.
pub(crate) fn fuzz_messages(mut bytes: &[u8]) {
    let _ = ReplyHead::parse(bytes);
    let _ = Hello::parse(bytes, 0);
    let _ = Welcome::parse(bytes);
    if let Ok(hello) = GuestHello::parse(bytes) {
        assert_eq!(GuestHello::parse(&hello.write()).ok(), Some(hello));
    }
    let (graveyard, _ended) = mpsc::channel();
    let registry = Registry::new(1, graveyard);
    let sessions = [Session::new(0), Session::new(1)];
    let slots: Vec<Arc<Slot>> = KINDS
        .iter()
        .filter_map(|kind| {
            // A cell begins with a value: one empty field.
            let request = [&[Op::Create as u8][..], &[0; 47]].concat();
            Request::parse(&request).ok().and_then(|request| {
                let mut handles = Vec::new();
                let who = caller(0, 0);
                let mut call = of(&request, who, &mut handles, &sessions[0]);
                call.second = 2;
                Object::create(*kind, &mut call).ok()
            })
        })
        .map(|object| registry.insert(object))
        .collect();
    for session in &sessions {
        slots.iter().for_each(|slot| session.hold(slot));
    }
    drop(slots);
    let mut calls = 0;
    while let [low, high, from, rest @ ..] = bytes {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (request, rest) = rest.split_at(len);
        bytes = rest;
        calls += 1;
        one(request, caller(*from, calls), &sessions);
    }
    for (number, session) in sessions.iter().enumerate() {
        let mut others = Vec::new();
        for slot in session.take_all() {
            lock(&slot.object).bereave(number as u64, &mut others);
        }
    }
    drop(sessions);
    // Those that hold each other in a circle.
    registry.collect();
    assert_eq!(registry.len(), 0, "an object outlived its last reference");
}

fn caller(from: u8, call: u32) -> Caller {
    Caller {
        connection: from.into(),
        session: u64::from(from) % 2,
        call,
    }
}

fn of<'a>(
    request: &Request<'a>,
    who: Caller,
    handles: &'a mut Vec<OwnedFd>,
    session: &'a Session,
) -> Call<'a> {
    Call {
        who,
        op: request.op,
        wait: request.wait,
        number: request.number,
        second: request.second,
        fields: request.fields,
        handles,
        session,
    }
}

fn one(bytes: &[u8], who: Caller, sessions: &[Arc<Session>; 2]) {
    let Ok(request) = Request::parse(bytes) else {
        return;
    };
    let session = &sessions[who.session as usize];
    let Ok(slot) = session.get(request.object) else {
        return;
    };
    let (mut reply, mut others) = (Reply::default(), Vec::<Answer>::new());
    reply.begin(request.call);
    let mut handles = Vec::new();
    let mut call = of(&request, who, &mut handles, session);
    match request.op {
        Op::Release => session.release(request.object, 1),
        // What a clock and the end of a connection bring.
        Op::Lease => lock(&slot.object).expire(who, &mut others),
        Op::Adopt => lock(&slot.object).leave(who.connection, &mut others),
        _ => {
            let mut object = lock(&slot.object);
            if let Err(error) = object.apply(&mut call, &mut reply, &mut others) {
                reply.fail(&error);
            }
            // Half of those who are answered are gone.
            while let Some(answer) = others.pop() {
                if answer.to.connection % 2 == 1 {
                    object.take_back(answer, &mut others);
                }
            }
        }
    }
    assert!(ReplyHead::parse(&reply.bytes).is_ok(), "a reply is none");
}

#[cfg(test)]
mod tests {
    use super::super::message::{REQUEST, field_head};
    use super::*;

    /// Requests that mean something, from numbers that do not.
    #[test]
    fn no_sequence_of_requests_panics_or_leaks() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..300 {
            let mut bytes = Vec::new();
            for _ in 0..200 {
                let mut request = vec![0; REQUEST];
                request[0] = random(90) as u8;
                request[4] = random(4) as u8;
                request[8] = random(11) as u8;
                request[16] = random(3) as u8;
                request[24] = random(4) as u8;
                request[32] = random(4) as u8;
                for _ in 0..random(4) {
                    let named = random(8) / 7;
                    let len = random(3) as usize;
                    request.extend(field_head(len, named as usize, 0).unwrap());
                    request.extend(vec![random(3) as u8; len]);
                    request.extend((0..named).flat_map(|_| 2u64.to_le_bytes()));
                }
                if random(20) == 0 {
                    request.truncate(random(60) as usize);
                }
                bytes.extend((request.len() as u16).to_le_bytes());
                bytes.push(random(6) as u8);
                bytes.extend(request);
            }
            fuzz_messages(&bytes);
        }
    }
}

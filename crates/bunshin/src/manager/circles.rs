//! Objects that hold each other in a circle, and nobody else does.
//!
//! An object lives while somebody refers to it, which the counts of references see to, but for
//! circles: a dict that holds a list that holds the dict. They are found by comparing: of the
//! references to an object, those that other objects have can be counted by looking through
//! all of them. One that has more is held from outside, by a client, a name, a message or a
//! call that waits, and so is whatever can be reached from it. The others are garbage.
//!
//! That looks through all values, so it is done rarely: when there are twice as many objects as
//! were left the last time, and when somebody asks how many there are.

use std::sync::{Arc, Weak};

use super::object::Object;
use super::registry::{Numbered, Registry, Slot, lock};

/// With fewer objects, circles are left alone.
const FEW: usize = 1024;

impl Registry {
    /// Collects circles if there are many more objects than after the last time. Only the thread
    /// that changes objects may call this.
    pub(super) fn collect_some(&self) {
        let mut look_at = lock(&self.collect_at);
        if self.len() > (*look_at).max(FEW) {
            self.collect();
            *look_at = self.len() * 2;
        }
    }

    /// Ends the objects that only circles of themselves refer to. Only the thread that changes
    /// objects may call this.
    pub(super) fn collect(&self) {
        let slots: Vec<Arc<Slot>> = self.slots().iter().filter_map(Weak::upgrade).collect();
        // For each object, the references to it that are not from objects.
        let mut outside: Numbered<usize> = slots
            .iter()
            .map(|slot| (slot.number, Arc::strong_count(slot) - 1))
            .collect();
        for slot in &slots {
            lock(&slot.object).each_named(&mut |named| {
                if let Some(count) = outside.get_mut(&named.number) {
                    // Another thread may just have let go of one.
                    *count = count.saturating_sub(1);
                }
            });
        }
        let mut todo: Vec<Arc<Slot>> = Vec::new();
        for slot in &slots {
            if outside.get(&slot.number).is_some_and(|count| *count > 0) {
                outside.remove(&slot.number);
                todo.push(Arc::clone(slot));
            }
        }
        // What can be reached from those that are held is held.
        while let Some(slot) = todo.pop() {
            lock(&slot.object).each_named(&mut |named| {
                if outside.remove(&named.number).is_some() {
                    todo.push(Arc::clone(named));
                }
            });
        }
        let garbage = slots
            .iter()
            .filter(|slot| outside.contains_key(&slot.number));
        let contents: Vec<Object> = garbage
            .filter_map(|slot| {
                let mut object = lock(&slot.object);
                // One of the program's own holds no others, and ends on another thread.
                let is_own = matches!(*object, Object::User(_));
                (!is_own).then(|| std::mem::replace(&mut *object, Object::Ended))
            })
            .collect();
        // Under no object's lock: this is where the others end.
        drop(contents);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::message::{FIELD, Kind, Op, REQUEST, Request, field_head};
    use super::super::object::{Call, Caller, Reply};
    use super::super::registry::Session;
    use super::*;

    /// Has one object hold another, under a key that nobody else uses.
    fn put(session: &Session, into: u64, what: u64) {
        let mut bytes = vec![0; REQUEST];
        bytes[0] = Op::Put as u8;
        bytes.extend(field_head(8, 0, 0).unwrap());
        bytes.extend(what.to_le_bytes());
        bytes.extend(field_head(0, 1, 0).unwrap());
        bytes.extend(what.to_le_bytes());
        assert_eq!(bytes.len(), REQUEST + 2 * FIELD + 16);
        let request = Request::parse(&bytes).unwrap();
        let mut call = Call {
            who: Caller {
                connection: 1,
                session: 0,
                call: 1,
            },
            op: request.op,
            wait: 0,
            number: 0,
            second: 0,
            fields: request.fields,
            handles: &mut Vec::new(),
            session,
        };
        let slot = session.get(into).unwrap();
        let mut reply = Reply::default();
        reply.begin(1);
        let done = lock(&slot.object).apply(&mut call, &mut reply, &mut Vec::new());
        done.unwrap();
    }

    fn dict(registry: &Arc<Registry>, session: &Session) -> u64 {
        let head = [0; REQUEST];
        let mut bytes = head;
        bytes[0] = Op::Create as u8;
        let request = Request::parse(&bytes).unwrap();
        let mut call = Call {
            who: Caller {
                connection: 1,
                session: 0,
                call: 1,
            },
            op: request.op,
            wait: 0,
            number: 0,
            second: 0,
            fields: request.fields,
            handles: &mut Vec::new(),
            session,
        };
        let slot = registry.insert(Object::create(Kind::Dict, &mut call).unwrap());
        session.hold(&slot);
        slot.number
    }

    #[test]
    fn circles_end_when_nobody_else_holds_them_and_not_before() {
        let registry = Registry::new(1, mpsc::channel().0);
        let session = Session::new(0);
        let [one, two, three, own, kept] = [(); 5].map(|()| dict(&registry, &session));
        for (into, what) in [
            (one, two),
            (two, three),
            (three, one),
            (own, own),
            (two, kept),
        ] {
            put(&session, into, what);
        }
        // Held by one of them, by another, and not at all.
        for held in [one, two, own] {
            session.release(held, 1);
        }
        session.release(kept, 1);
        registry.collect();
        assert_eq!(
            registry.len(),
            4,
            "the circle is held by its third, with all that it holds"
        );
        let third = session.get(three).unwrap();
        session.release(three, 1);
        registry.collect();
        assert_eq!(registry.len(), 4, "somebody is using it");
        drop(third);
        assert_eq!(registry.len(), 4, "a circle holds itself");
        registry.collect();
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn many_circles_are_collected_by_themselves() {
        let registry = Registry::new(1, mpsc::channel().0);
        let session = Session::new(0);
        for _ in 0..3 * FEW {
            let own = dict(&registry, &session);
            put(&session, own, own);
            session.release(own, 1);
            registry.collect_some();
            assert!(registry.len() <= FEW + 1);
        }
    }
}

//! A lock, and a condition with a lock of its own.
//!
//! A lock belongs to a process. If that ends with it, whoever has it next is told, and
//! every one after that until somebody says that all is well again.

use super::super::message::{Op, Status};
use super::line::{Line, status};
use super::{Answer, Call, Caller, Flow, Reply, wrong};
use crate::error::{Error, ErrorKind, Result};

/// Of those who wait for a lock: it has asked for it, and may run out of time.
const ASKED: u64 = 2;

#[derive(Default)]
pub(in super::super) struct Lock {
    owner: Option<u64>,
    is_abandoned: bool,
    /// Who waits, and what it is told beside that it has the lock.
    waiting: Line<u64>,
}

impl Lock {
    pub(super) fn apply(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply,
        others: &mut Vec<Answer>,
    ) -> Result<Flow> {
        match call.op {
            Op::Lock => {
                if self.owner.is_some() {
                    return Ok(self.waiting.join(call, reply, ASKED));
                }
                self.owner = Some(call.who.session);
                reply.set(status(self.is_abandoned), 0);
            }
            Op::Unlock => {
                self.check(call)?;
                self.pass_on(others);
            }
            Op::Undo => {
                if self.owner == Some(call.who.session) {
                    self.pass_on(others);
                }
            }
            Op::Recover => {
                self.check(call)?;
                self.is_abandoned = false;
            }
            Op::IsSet => reply.set(Status::Ok, self.owner.is_some().into()),
            _ => return Err(wrong()),
        }
        Ok(Flow::Reply)
    }

    fn check(&self, call: &Call<'_>) -> Result<()> {
        if self.owner == Some(call.who.session) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            "this process does not have the manager's lock",
        ))
    }

    /// Gives the lock to the next one.
    fn pass_on(&mut self, others: &mut Vec<Answer>) {
        let next = self.waiting.pop();
        self.owner = next.map(|(caller, _)| caller.session);
        if let Some((caller, number)) = next {
            others.push(Answer {
                number,
                ..Answer::new(caller, status(self.is_abandoned))
            });
        }
    }

    /// Somebody wants the lock back.
    fn enter(&mut self, caller: Caller, number: u64, others: &mut Vec<Answer>) {
        self.waiting.push(caller, number);
        if self.owner.is_none() {
            self.pass_on(others);
        }
    }

    pub(super) fn expire(&mut self, who: Caller, others: &mut Vec<Answer>) {
        if self.waiting.remove(who, |number| *number == ASKED) {
            others.push(Answer::new(who, Status::NotYet));
        }
    }

    pub(super) fn leave(&mut self, connection: u64) {
        self.waiting.leave(connection);
    }

    pub(super) fn bereave(&mut self, session: u64, others: &mut Vec<Answer>) {
        self.waiting.bereave(session);
        if self.owner == Some(session) {
            self.is_abandoned = true;
            self.pass_on(others);
        }
    }

    /// The one who was given the lock never learned of it, and changed nothing under it.
    pub(super) fn take_back(&mut self, to: Caller, others: &mut Vec<Answer>) {
        if self.owner == Some(to.session) {
            self.pass_on(others);
        }
    }
}

/// A condition: a lock, and those who wait to be notified. Who waits says how:
/// 0 notified, 1 the time was over.
#[derive(Default)]
pub(in super::super) struct Condition {
    lock: Lock,
    sleeping: Line,
}

impl Condition {
    pub(super) fn apply(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply,
        others: &mut Vec<Answer>,
    ) -> Result<Flow> {
        match call.op {
            Op::Wait => {
                self.lock.check(call)?;
                self.sleeping.push(call.who, ());
                self.lock.pass_on(others);
                Ok(Flow::Wait)
            }
            Op::Notify => {
                self.lock.check(call)?;
                let count = call.number.min(self.sleeping.len() as u64);
                for (caller, ()) in self.sleeping.drain(count as usize) {
                    self.lock.enter(caller, 0, others);
                }
                reply.set(Status::Ok, count);
                Ok(Flow::Reply)
            }
            _ => self.lock.apply(call, reply, others),
        }
    }

    pub(super) fn expire(&mut self, who: Caller, others: &mut Vec<Answer>) {
        if self.sleeping.remove(who, |()| true) {
            self.lock.enter(who, 1, others);
        } else {
            // One who has been notified waits for the lock without a limit.
            self.lock.expire(who, others);
        }
    }

    pub(super) fn leave(&mut self, connection: u64) {
        self.sleeping.leave(connection);
        self.lock.leave(connection);
    }

    pub(super) fn bereave(&mut self, session: u64, others: &mut Vec<Answer>) {
        self.sleeping.bereave(session);
        self.lock.bereave(session, others);
    }

    pub(super) fn take_back(&mut self, to: Caller, others: &mut Vec<Answer>) {
        self.lock.take_back(to, others);
    }
}

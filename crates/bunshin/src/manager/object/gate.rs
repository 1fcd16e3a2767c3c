//! Semaphore, event, barrier.

use super::super::message::{FOREVER, Op, Status};
use super::super::registry::Numbered;
use super::line::{Line, status};
use super::{Answer, Call, Caller, Flow, Reply, wrong};
use crate::error::{Error, ErrorKind, Result};

/// Permits, and which processes have some.
pub(in super::super) struct Semaphore {
    permits: u64,
    bound: u64,
    held: Numbered<u64>,
    is_abandoned: bool,
    waiting: Line,
}

impl Semaphore {
    pub(super) fn new(permits: u64, bound: u64) -> Self {
        Self {
            permits,
            bound: bound.max(permits),
            held: Numbered::default(),
            is_abandoned: false,
            waiting: Line::default(),
        }
    }

    pub(super) fn apply(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply,
        others: &mut Vec<Answer>,
    ) -> Result<Flow> {
        match call.op {
            Op::Acquire => {
                if self.permits == 0 {
                    return Ok(self.waiting.join(call, reply, ()));
                }
                self.grant(call.who.session);
                reply.set(status(self.is_abandoned), 0);
            }
            // A guard's permit comes back; or an answer with one came too late.
            Op::Unlock | Op::Undo => {
                self.disown(call.who.session)?;
                self.add(1, others);
            }
            // A guard's permit stays away, whatever becomes of the process.
            Op::Reset => self.disown(call.who.session)?,
            Op::Add => {
                let total = self.permits.checked_add(call.number);
                let given: u64 = self.held.values().sum();
                let is_within = total.and_then(|total| total.checked_add(given));
                if is_within.is_none_or(|total| total > self.bound && self.bound != FOREVER) {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        format!("a bounded semaphore would have more than {}", self.bound),
                    ));
                }
                self.add(call.number, others);
            }
            Op::Permits => reply.set(Status::Ok, self.permits),
            Op::Recover => self.is_abandoned = false,
            _ => return Err(wrong()),
        }
        Ok(Flow::Reply)
    }

    fn grant(&mut self, session: u64) {
        self.permits -= 1;
        *self.held.entry(session).or_default() += 1;
    }

    fn disown(&mut self, session: u64) -> Result<()> {
        let Some(count) = self.held.get_mut(&session) else {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "this process has no permit of the manager's semaphore",
            ));
        };
        *count -= 1;
        if *count == 0 {
            self.held.remove(&session);
        }
        Ok(())
    }

    fn add(&mut self, permits: u64, others: &mut Vec<Answer>) {
        self.permits += permits;
        while self.permits > 0 {
            let Some((next, ())) = self.waiting.pop() else {
                break;
            };
            self.grant(next.session);
            others.push(Answer::new(next, status(self.is_abandoned)));
        }
    }

    pub(super) fn expire(&mut self, who: Caller, others: &mut Vec<Answer>) {
        self.waiting.expire(who, others);
    }

    pub(super) fn leave(&mut self, connection: u64) {
        self.waiting.leave(connection);
    }

    pub(super) fn bereave(&mut self, session: u64, others: &mut Vec<Answer>) {
        self.waiting.bereave(session);
        if let Some(permits) = self.held.remove(&session) {
            self.is_abandoned = true;
            self.add(permits, others);
        }
    }

    pub(super) fn take_back(&mut self, answer: &Answer, others: &mut Vec<Answer>) {
        if answer.status != Status::NotYet && self.disown(answer.to.session).is_ok() {
            self.add(1, others);
        }
    }
}

/// A flag to wait for.
#[derive(Default)]
pub(in super::super) struct Event {
    is_set: bool,
    waiting: Line,
}

impl Event {
    pub(super) fn apply(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply,
        others: &mut Vec<Answer>,
    ) -> Result<Flow> {
        match call.op {
            Op::Set => {
                self.is_set = true;
                self.waiting.release(others);
            }
            Op::Reset => self.is_set = false,
            Op::IsSet => reply.set(Status::Ok, self.is_set.into()),
            Op::Wait if !self.is_set => {
                return Ok(self.waiting.join(call, reply, ()));
            }
            Op::Wait | Op::Undo => {}
            _ => return Err(wrong()),
        }
        Ok(Flow::Reply)
    }

    pub(super) fn expire(&mut self, who: Caller, others: &mut Vec<Answer>) {
        self.waiting.expire(who, others);
    }

    pub(super) fn leave(&mut self, connection: u64) {
        self.waiting.leave(connection);
    }
}

/// A barrier: who has arrived, and who leads those that have gone through.
///
/// | State | Means | Becomes |
/// |---|---|---|
/// | filling | fewer than all have come | acting, or all are let through, when the last comes |
/// | acting | the last one runs its action, its group waits | filling when it is done |
/// | broken | everyone is told so | filling by `Reset` |
pub(in super::super) struct Barrier {
    parties: usize,
    arrived: Vec<(Caller, bool)>,
    acting: Option<(Caller, Vec<Caller>)>,
    is_broken: bool,
}

/// In the number of an answer: the caller is to run its action now.
pub(in super::super) const ACT: u64 = 1 << 32;

impl Barrier {
    pub(super) fn new(parties: u64) -> Result<Self> {
        match usize::try_from(parties) {
            Ok(parties @ 1..=0xffff_ffff) => Ok(Self {
                parties,
                arrived: Vec::new(),
                acting: None,
                is_broken: false,
            }),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "a barrier is for one party at least",
            )),
        }
    }

    pub(super) fn apply(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply,
        others: &mut Vec<Answer>,
    ) -> Result<Flow> {
        match call.op {
            Op::Wait if self.is_broken => reply.set(Status::Broken, 0),
            Op::Wait => {
                self.arrived.push((call.who, call.second != 0));
                self.let_through(others);
                if call.wait == 0 && self.arrived.iter().any(|(who, _)| *who == call.who) {
                    self.expire(call.who, others);
                }
                return Ok(Flow::Wait);
            }
            // The action has been run.
            Op::Set => {
                if self.is_acting(call.who.session) {
                    let group = self.acting.take().map_or_else(Vec::new, |(_, group)| group);
                    release(group, others);
                    self.let_through(others);
                } else {
                    reply.set(Status::Broken, 0);
                }
            }
            Op::Abort => self.break_up(others),
            Op::Reset => {
                self.break_up(others);
                self.is_broken = false;
            }
            Op::State => {
                let state = self.arrived.len() as u64 | u64::from(self.is_broken) << 63;
                reply.set(Status::Ok, state);
            }
            Op::Len => reply.set(Status::Ok, self.parties as u64),
            Op::Undo => {}
            _ => return Err(wrong()),
        }
        Ok(Flow::Reply)
    }

    fn is_acting(&self, session: u64) -> bool {
        matches!(&self.acting, Some((leader, _)) if leader.session == session)
    }

    /// Lets a group through if it is whole and no other is being led.
    fn let_through(&mut self, others: &mut Vec<Answer>) {
        while self.acting.is_none() && self.arrived.len() >= self.parties {
            let group: Vec<_> = self.arrived.drain(..self.parties).collect();
            let mut callers: Vec<_> = group.iter().map(|(who, _)| *who).collect();
            match group.last() {
                Some((leader, true)) => {
                    callers.pop();
                    let number = ACT | callers.len() as u64;
                    others.push(Answer {
                        number,
                        ..Answer::new(*leader, Status::Ok)
                    });
                    self.acting = Some((*leader, callers));
                }
                _ => release(callers, others),
            }
        }
    }

    fn break_up(&mut self, others: &mut Vec<Answer>) {
        self.is_broken = true;
        let group = self.acting.take().map_or_else(Vec::new, |(_, group)| group);
        let arrived = self.arrived.drain(..).map(|(who, _)| who);
        let all = group.into_iter().chain(arrived);
        others.extend(all.map(|who| Answer::new(who, Status::Broken)));
    }

    /// One who does not wait any longer breaks the barrier for all.
    pub(super) fn expire(&mut self, who: Caller, others: &mut Vec<Answer>) {
        if self.arrived.iter().any(|(caller, _)| *caller == who) {
            self.arrived.retain(|(caller, _)| *caller != who);
            others.push(Answer::new(who, Status::NotYet));
            self.break_up(others);
        }
    }

    /// The leader of a group is gone, or never learned that it is: its action will not be run.
    fn lose_leader(&mut self, is_it: impl Fn(&Caller) -> bool, others: &mut Vec<Answer>) {
        if self
            .acting
            .as_ref()
            .is_some_and(|(leader, _)| is_it(leader))
        {
            self.break_up(others);
        }
    }

    pub(super) fn bereave(&mut self, session: u64, others: &mut Vec<Answer>) {
        self.lose_leader(|leader| leader.session == session, others);
    }

    pub(super) fn take_back(&mut self, answer: &Answer, others: &mut Vec<Answer>) {
        self.lose_leader(|leader| *leader == answer.to, others);
    }

    pub(super) fn leave(&mut self, connection: u64, others: &mut Vec<Answer>) {
        let is_gone = |who: &Caller| who.connection == connection;
        let led = self.acting.as_ref();
        let was_here = self.arrived.iter().any(|(who, _)| is_gone(who))
            || led.is_some_and(|(leader, group)| is_gone(leader) || group.iter().any(is_gone));
        if was_here {
            self.arrived.retain(|(who, _)| !is_gone(who));
            if let Some((_, group)) = &mut self.acting {
                group.retain(|who| !is_gone(who));
            }
            self.break_up(others);
        }
    }
}

fn release(group: Vec<Caller>, others: &mut Vec<Answer>) {
    others.extend(group.into_iter().enumerate().map(|(place, who)| Answer {
        number: place as u64,
        ..Answer::new(who, Status::Ok)
    }));
}

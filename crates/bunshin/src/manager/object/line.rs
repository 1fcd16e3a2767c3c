//! Those who wait for an object, in the order in which they came.

use std::collections::VecDeque;
use std::collections::vec_deque::Drain;

use super::super::message::Status;
use super::{Answer, Call, Caller, Flow, Reply, wait_or_not};

/// Callers, each with a note on what it waits for.
pub(super) struct Line<N = ()>(VecDeque<(Caller, N)>);

impl<N> Default for Line<N> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<N> Line<N> {
    /// Has a caller wait, or tells it that it would have to.
    pub(super) fn join(&mut self, call: &Call<'_>, reply: &mut Reply, note: N) -> Flow {
        let flow = wait_or_not(call, reply);
        if flow == Flow::Wait {
            self.push(call.who, note);
        }
        flow
    }

    pub(super) fn push(&mut self, who: Caller, note: N) {
        self.0.push_back((who, note));
    }

    pub(super) fn pop(&mut self) -> Option<(Caller, N)> {
        self.0.pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first ones, who wait no more.
    pub(super) fn drain(&mut self, count: usize) -> Drain<'_, (Caller, N)> {
        self.0.drain(..count)
    }

    pub(super) fn notes(&self) -> impl Iterator<Item = &N> {
        self.0.iter().map(|(_, note)| note)
    }

    /// Takes a caller out; false if it does not wait here, or for something else.
    pub(super) fn remove(&mut self, who: Caller, is_it: impl Fn(&N) -> bool) -> bool {
        let place = |(caller, note): &(Caller, N)| *caller == who && is_it(note);
        let position = self.0.iter().position(place);
        position.is_some_and(|position| self.0.remove(position).is_some())
    }

    /// The time of a caller is over: it is told so, if it waits here.
    pub(super) fn expire(&mut self, who: Caller, others: &mut Vec<Answer>) {
        if self.remove(who, |_| true) {
            others.push(Answer::new(who, Status::NotYet));
        }
    }

    /// A connection is gone.
    pub(super) fn leave(&mut self, connection: u64) {
        self.0.retain(|(who, _)| who.connection != connection);
    }

    /// A process is gone.
    pub(super) fn bereave(&mut self, session: u64) {
        self.0.retain(|(who, _)| who.session != session);
    }

    /// All are told that their wait is over.
    pub(super) fn release(&mut self, others: &mut Vec<Answer>) {
        let waiting = self.0.drain(..);
        others.extend(waiting.map(|(who, _)| Answer::new(who, Status::Ok)));
    }
}

/// What the next holder is told, if the one before died with it and nobody has recovered since.
pub(super) fn status(is_abandoned: bool) -> Status {
    if is_abandoned {
        Status::Abandoned
    } else {
        Status::Ok
    }
}

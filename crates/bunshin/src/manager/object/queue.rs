//! A queue that knows what has been taken and not yet done.

use std::collections::VecDeque;

use super::super::message::{Op, Status};
use super::super::registry::Stored;
use super::line::Line;
use super::{Answer, Call, Caller, Flow, Reply, wrong};
use crate::error::{Error, ErrorKind, Result};

/// Items in order. At any time only one of the two can be waiting: receivers while there
/// is no item, senders while there is no room.
pub(in super::super) struct Queue {
    items: VecDeque<Stored>,
    bound: usize,
    receivers: Line,
    senders: Line<Stored>,
    /// Items sent and not yet said to be done.
    unfinished: u64,
    joining: Line,
}

impl Queue {
    /// With room for so many items; 0 for any number.
    pub(super) fn new(bound: u64) -> Self {
        let bound = usize::try_from(bound).unwrap_or(usize::MAX);
        Self {
            items: VecDeque::new(),
            bound: if bound == 0 { usize::MAX } else { bound },
            receivers: Line::default(),
            senders: Line::default(),
            unfinished: 0,
            joining: Line::default(),
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Stored> {
        self.items.iter().chain(self.senders.notes())
    }

    pub(super) fn apply(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply,
        others: &mut Vec<Answer>,
    ) -> Result<Flow> {
        match call.op {
            Op::Send => {
                if self.items.len() < self.bound {
                    let item = call.value()?;
                    self.unfinished += 1;
                    self.deliver(item, others);
                } else if call.wait == 0 {
                    reply.set(Status::NotYet, 0);
                } else {
                    let item = call.value()?;
                    self.senders.push(call.who, item);
                    return Ok(Flow::Wait);
                }
            }
            Op::Recv => match self.items.pop_front() {
                Some(item) => {
                    reply.give(item)?;
                    self.refill(others);
                }
                None => {
                    return Ok(self.receivers.join(call, reply, ()));
                }
            },
            Op::Undo => {
                // An item that came too late goes back to where it was; a send that was
                // done too late is done.
                if call.fields.clone().next().is_some() {
                    let item = call.value()?;
                    self.put_back(item, others);
                }
            }
            Op::TaskDone => {
                if self.unfinished == 0 {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        "task_done was called more often than items were sent",
                    ));
                }
                self.unfinished -= 1;
                if self.unfinished == 0 {
                    self.joining.release(others);
                }
            }
            Op::Join if self.unfinished > 0 => {
                return Ok(self.joining.join(call, reply, ()));
            }
            Op::Join => {}
            Op::Len => reply.set(Status::Ok, self.items.len() as u64),
            _ => return Err(wrong()),
        }
        Ok(Flow::Reply)
    }

    /// Gives an item to whoever waits for one, or keeps it.
    fn deliver(&mut self, item: Stored, others: &mut Vec<Answer>) {
        match self.receivers.pop() {
            Some((who, ())) => others.push(Answer {
                value: Some(item),
                ..Answer::new(who, Status::Ok)
            }),
            None => self.items.push_back(item),
        }
    }

    /// Takes in items of those who wait for room.
    fn refill(&mut self, others: &mut Vec<Answer>) {
        while self.items.len() < self.bound {
            let Some((who, item)) = self.senders.pop() else {
                return;
            };
            self.unfinished += 1;
            self.items.push_back(item);
            others.push(Answer::new(who, Status::Ok));
        }
    }

    fn put_back(&mut self, item: Stored, others: &mut Vec<Answer>) {
        match self.receivers.pop() {
            Some((who, ())) => others.push(Answer {
                value: Some(item),
                ..Answer::new(who, Status::Ok)
            }),
            None => self.items.push_front(item),
        }
    }

    pub(super) fn expire(&mut self, who: Caller, others: &mut Vec<Answer>) {
        self.receivers.expire(who, others);
        self.senders.expire(who, others);
        self.joining.expire(who, others);
    }

    pub(super) fn leave(&mut self, connection: u64) {
        self.receivers.leave(connection);
        self.senders.leave(connection);
        self.joining.leave(connection);
    }

    pub(super) fn take_back(&mut self, answer: Answer, others: &mut Vec<Answer>) {
        if let Some(item) = answer.value {
            self.put_back(item, others);
        }
    }
}

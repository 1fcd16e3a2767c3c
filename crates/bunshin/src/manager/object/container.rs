//! Dict, list, and a cell for one value.

use std::collections::HashMap;

use super::super::message::{Op, Status};
use super::super::registry::Stored;
use super::{Call, Flow, Reply, wrong};
use crate::error::Result;

/// Values by the bytes of their keys.
#[derive(Default)]
pub(in super::super) struct Dict {
    values: HashMap<Box<[u8]>, Stored>,
}

impl Dict {
    pub(super) fn values(&self) -> impl Iterator<Item = &Stored> {
        self.values.values()
    }

    #[inline]
    pub(super) fn apply(&mut self, call: &mut Call<'_>, reply: &mut Reply) -> Result<Flow> {
        match call.op {
            Op::Get => match self.values.get(call.bytes()?) {
                Some(value) => reply.push(value)?,
                None => reply.set(Status::Nothing, 0),
            },
            Op::Put => {
                let key = call.bytes()?.into();
                match self.values.insert(key, call.value()?) {
                    Some(before) => reply.give(before)?,
                    None => reply.set(Status::Nothing, 0),
                }
            }
            Op::Update => {
                while call.fields.clone().next().is_some() {
                    let key = call.bytes()?.into();
                    self.values.insert(key, call.value()?);
                }
            }
            Op::GetOrPut => {
                let key: Box<[u8]> = call.bytes()?.into();
                let value = call.value()?;
                reply.push(self.values.entry(key).or_insert(value))?;
            }
            Op::CompareAndSet => {
                let key: Box<[u8]> = call.bytes()?.into();
                let (current, new) = (call.value()?, call.value()?);
                match self.values.get_mut(&key) {
                    Some(value) if value.bytes == current.bytes => *value = new,
                    Some(value) => {
                        reply.push(value)?;
                        reply.set(Status::NotYet, 0);
                    }
                    None => reply.set(Status::Nothing, 0),
                }
            }
            Op::Take => match self.values.remove(call.bytes()?) {
                Some(value) => reply.give(value)?,
                None => reply.set(Status::Nothing, 0),
            },
            Op::TakeAny => {
                let key = self.values.keys().next().cloned();
                match key.and_then(|key| self.values.remove_entry(&key)) {
                    Some((key, value)) => {
                        reply.push_bytes(&key)?;
                        reply.give(value)?;
                    }
                    None => reply.set(Status::Nothing, 0),
                }
            }
            Op::Has => {
                let has = self.values.contains_key(call.bytes()?);
                reply.set(Status::Ok, has.into());
            }
            Op::Len => reply.set(Status::Ok, self.values.len() as u64),
            Op::Clear => self.values.clear(),
            Op::Keys => {
                for key in self.values.keys() {
                    reply.push_bytes(key)?;
                }
            }
            Op::Values => {
                for value in self.values.values() {
                    reply.push(value)?;
                }
            }
            Op::Items => {
                for (key, value) in &self.values {
                    reply.push_bytes(key)?;
                    reply.push(value)?;
                }
            }
            _ => return Err(wrong()),
        }
        Ok(Flow::Reply)
    }
}

/// Values in order.
#[derive(Default)]
pub(in super::super) struct List {
    values: Vec<Stored>,
}

impl List {
    pub(super) fn values(&self) -> impl Iterator<Item = &Stored> {
        self.values.iter()
    }

    /// Appends the call's fields.
    pub(super) fn extend(&mut self, call: &mut Call<'_>) -> Result<()> {
        while call.fields.clone().next().is_some() {
            self.values.push(call.value()?);
        }
        Ok(())
    }

    pub(super) fn apply(&mut self, call: &mut Call<'_>, reply: &mut Reply) -> Result<Flow> {
        let index = call.index();
        match call.op {
            Op::Get => match self.values.get(index) {
                Some(value) => reply.push(value)?,
                None => reply.set(Status::Nothing, 0),
            },
            Op::Put => match self.values.get_mut(index) {
                Some(value) => reply.give(std::mem::replace(value, call.value()?))?,
                None => reply.set(Status::Nothing, 0),
            },
            Op::Push | Op::Update => self.extend(call)?,
            Op::Pop => match self.values.pop() {
                Some(value) => reply.give(value)?,
                None => reply.set(Status::Nothing, 0),
            },
            Op::Insert if index <= self.values.len() => self.values.insert(index, call.value()?),
            Op::Take if index < self.values.len() => reply.give(self.values.remove(index))?,
            Op::Swap => {
                let other = usize::try_from(call.second).unwrap_or(usize::MAX);
                if index.max(other) < self.values.len() {
                    self.values.swap(index, other);
                } else {
                    reply.set(Status::Nothing, 0);
                }
            }
            Op::Insert | Op::Take => reply.set(Status::Nothing, 0),
            Op::Truncate => self.values.truncate(index),
            Op::Reverse => self.values.reverse(),
            Op::Clear => self.values.clear(),
            Op::Replace => {
                let before = std::mem::take(&mut self.values);
                if let Err(error) = self.extend(call) {
                    self.values = before;
                    return Err(error);
                }
            }
            Op::Len => reply.set(Status::Ok, self.values.len() as u64),
            Op::Find1 => {
                let wanted = call.bytes()?;
                match self.values.iter().position(|value| *value.bytes == *wanted) {
                    Some(position) => reply.set(Status::Ok, position as u64),
                    None => reply.set(Status::Nothing, 0),
                }
            }
            Op::Count => {
                let wanted = call.bytes()?;
                let count = self.values.iter().filter(|value| *value.bytes == *wanted);
                reply.set(Status::Ok, count.count() as u64);
            }
            Op::Items => {
                let to = usize::try_from(call.second).unwrap_or(usize::MAX);
                let to = to.min(self.values.len());
                for value in self.values.get(index..to).unwrap_or(&[]) {
                    reply.push(value)?;
                }
            }
            Op::CompareAndSet => {
                let (current, new) = (call.value()?, call.value()?);
                match self.values.get_mut(index) {
                    Some(value) => compare_and_set(value, &current, new, reply)?,
                    None => reply.set(Status::Nothing, 0),
                }
            }
            _ => return Err(wrong()),
        }
        Ok(Flow::Reply)
    }
}

fn compare_and_set(
    value: &mut Stored,
    current: &Stored,
    new: Stored,
    reply: &mut Reply,
) -> Result<()> {
    if value.bytes == current.bytes {
        *value = new;
    } else {
        reply.push(value)?;
        reply.set(Status::NotYet, 0);
    }
    Ok(())
}

pub(super) fn apply_to_cell(
    cell: &mut Stored,
    call: &mut Call<'_>,
    reply: &mut Reply,
) -> Result<Flow> {
    match call.op {
        Op::Get => reply.push(cell)?,
        Op::Put => *cell = call.value()?,
        Op::Replace => reply.give(std::mem::replace(cell, call.value()?))?,
        Op::CompareAndSet => {
            let (current, new) = (call.value()?, call.value()?);
            compare_and_set(cell, &current, new, reply)?;
        }
        _ => return Err(wrong()),
    }
    Ok(Flow::Reply)
}

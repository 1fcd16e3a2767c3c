//! The parent's side: records become events of `tracing` again.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_core::field::{self, Field, FieldSet};
use tracing_core::metadata::Kind;
use tracing_core::subscriber::NoSubscriber;
use tracing_core::{
    Callsite, Dispatch, Event, Interest, Level, Metadata, dispatcher, identify_callsite,
};

use super::record::{FIELDS, Record, Value};

/// The fields that say where a record is from, after its own.
const FROM: [&str; 4] = ["process", "pid", "task", "spans"];

/// Sites that are remembered: each takes some memory for good, as `tracing` keeps references
/// to them for ever. A program has fewer, unless it makes them up.
const SITES_MAX: usize = 10_000;

/// A place in the program that records come from.
struct Site {
    metadata: OnceLock<Metadata<'static>>,
}

impl Callsite for Site {
    // It is never registered: whether an event is wanted is asked each time.
    fn set_interest(&self, _interest: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        self.metadata
            .get()
            .expect("it is set before anybody else has the site")
    }
}

static SITES: Mutex<Option<HashMap<String, &'static Site>>> = Mutex::new(None);

fn level(number: u8) -> Level {
    match number {
        1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

/// The site of a record with fields of those names; nothing if there are too many sites.
fn site(record: &Record<'_>, names: &[&str]) -> Option<&'static Site> {
    let place = [record.name, record.target, record.file, record.module];
    let mut key = format!("{}\0{}\0", record.level, record.line.unwrap_or(0));
    for part in place.iter().chain(names) {
        key.push_str(part);
        key.push('\0');
    }
    let mut sites = SITES.lock().unwrap_or_else(PoisonError::into_inner);
    let sites = sites.get_or_insert_default();
    if let Some(site) = sites.get(&key) {
        return Some(site);
    }
    if sites.len() >= SITES_MAX {
        return None;
    }
    let site = &*Box::leak(Box::new(Site {
        metadata: OnceLock::new(),
    }));
    let keep = |text: &str| &*String::leak(text.to_owned());
    let some = |text: &str| (!text.is_empty()).then(|| keep(text));
    // A field of its own that is called as one of ours would hide it.
    let own = names.iter().map(|name| {
        if FROM.contains(name) {
            keep(&format!("original.{name}"))
        } else {
            keep(name)
        }
    });
    let names: Vec<&'static str> = own.chain(FROM).collect();
    let metadata = Metadata::new(
        keep(record.name),
        keep(record.target),
        level(record.level),
        some(record.file),
        record.line,
        some(record.module),
        FieldSet::new(Vec::leak(names), identify_callsite!(site)),
        Kind::EVENT,
    );
    let _ = site.metadata.set(metadata);
    sites.insert(key, site);
    Some(site)
}

/// Makes an event of a record, for the subscriber `to`, or for this thread's where that is
/// none. False if it was left out, as there are too many sites.
pub(super) fn emit(to: &Dispatch, record: &Record<'_>, fields: &[(&str, Value<'_>)]) -> bool {
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let Some(site) = site(record, &names) else {
        return false;
    };
    if to.is::<NoSubscriber>() {
        dispatcher::get_default(|to| hand_over(to, site.metadata(), record, fields));
    } else {
        hand_over(to, site.metadata(), record, fields);
    }
    true
}

fn hand_over(
    to: &Dispatch,
    metadata: &'static Metadata<'static>,
    record: &Record<'_>,
    fields: &[(&str, Value<'_>)],
) {
    if !to.enabled(metadata) {
        return;
    }
    let own: Vec<Option<Box<dyn field::Value + '_>>> = fields
        .iter()
        .map(|(_, value)| Some(boxed(*value)))
        .chain([
            Some(boxed(Value::Text(record.process))),
            Some(boxed(Value::Uint(record.pid.into()))),
            record.task.map(|task| boxed(Value::Uint(task))),
            (!record.spans.is_empty()).then(|| boxed(Value::Shown(record.spans))),
        ])
        .collect();
    let names: Vec<Field> = metadata.fields().iter().collect();
    // A set of values has a fixed length. What is beyond them names the first field and has no
    // value, which is as if it were not there.
    let values: [(&Field, Option<&dyn field::Value>); FIELDS + FROM.len()] =
        std::array::from_fn(|at| match (names.get(at), own.get(at)) {
            (Some(name), Some(value)) => (name, value.as_deref()),
            _ => (&names[0], None),
        });
    let values = metadata.fields().value_set(&values);
    // Not within the spans that this thread happens to be in.
    to.event(&Event::new_child_of(None, metadata, &values));
}

fn boxed<'a>(value: Value<'a>) -> Box<dyn field::Value + 'a> {
    match value {
        Value::Float(number) => Box::new(number),
        Value::Int(number) => Box::new(number),
        Value::Uint(number) => Box::new(number),
        Value::Int128(number) => Box::new(number),
        Value::Uint128(number) => Box::new(number),
        Value::Bool(is) => Box::new(is),
        Value::Text(text) => Box::new(text),
        Value::Shown(text) => Box::new(field::display(text)),
    }
}

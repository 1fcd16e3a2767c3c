//! The child's side: a subscriber that writes each event to the parent's pipe.
//!
//! Nothing here waits. A record that finds no room is counted, and gone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Current, Id, Record as Values};
use tracing_core::{Event, Interest, Level, LevelFilter, Metadata, Subscriber};

use super::Wire;
use super::record::{Fields, Record, SPANS_MAX, Value, cut};
use crate::sys::pipe;

/// Bytes of one span's name and fields at most.
const SPAN_MAX: usize = 256;

/// What this process is called.
static NAME: Mutex<String> = Mutex::new(String::new());
/// The task that runs in this process, plus one; 0 for none.
static TASK: AtomicU64 = AtomicU64::new(0);

/// Begins a process: nothing of what it may have inherited counts.
pub(super) fn begin(name: &str) {
    name.clone_into(&mut NAME.lock().unwrap_or_else(PoisonError::into_inner));
    TASK.store(0, Ordering::Relaxed);
    // Those of the subscriber that this process is a copy of.
    entered(Vec::clear);
}

/// While this lives, records are those of a task.
#[derive(Debug)]
pub(crate) struct Task;

/// Says that a task runs, until the guard is dropped.
#[inline]
pub(crate) fn task(number: u32) -> Task {
    TASK.store(u64::from(number) + 1, Ordering::Relaxed);
    Task
}

impl Drop for Task {
    fn drop(&mut self) {
        TASK.store(0, Ordering::Relaxed);
    }
}

/// Writes a record of this process, or counts it.
fn write(to: &Wire, record: Record<'_>, fields: &Fields) {
    let name = NAME.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let frame = Record {
        pid: std::process::id(),
        task: TASK.load(Ordering::Relaxed).checked_sub(1),
        process: &name,
        ..record
    }
    .frame(fields);
    if !pipe::write(to.pipe.as_fd(), &frame) {
        to.lost().fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes a record of a panic.
pub(super) fn panicked(to: &Wire, info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let mut fields = Fields::default();
    fields.push(
        "message",
        Value::Shown(message.unwrap_or("(the panic's payload is not text)")),
    );
    // Of a thread that the child has started; what its first one is called differs.
    if let Some(thread) = std::thread::current().name().filter(|name| *name != "main") {
        fields.push("thread", Value::Text(thread));
    }
    let record = Record {
        level: 1,
        name: "panic",
        target: "panic",
        file: info.location().map_or("", |place| place.file()),
        line: info.location().map(|place| place.line()),
        ..Record::default()
    };
    write(to, record, &fields);
}

/// The subscriber of a child.
pub(super) struct Forwarder {
    to: Arc<Wire>,
    level: LevelFilter,
    next: AtomicU64,
    spans: Mutex<HashMap<u64, Span>>,
}

struct Span {
    metadata: &'static Metadata<'static>,
    /// Its name and fields.
    text: String,
    parent: Option<u64>,
    handles: usize,
}

thread_local! {
    /// The spans that this thread is in, innermost last.
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Works on the spans of this thread, unless it is at its end.
fn entered<R: Default>(work: impl FnOnce(&mut Vec<u64>) -> R) -> R {
    let of_thread =
        ENTERED.try_with(|entered| entered.try_borrow_mut().map(|mut spans| work(&mut spans)));
    of_thread.ok().and_then(Result::ok).unwrap_or_default()
}

impl Forwarder {
    pub(super) fn new(to: Arc<Wire>, level: LevelFilter) -> Self {
        Self {
            to,
            level,
            next: AtomicU64::new(1),
            spans: Mutex::default(),
        }
    }

    fn spans<R>(&self, work: impl FnOnce(&mut HashMap<u64, Span>) -> R) -> R {
        work(&mut self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The innermost span of this thread.
    fn current(&self) -> Option<u64> {
        entered(|spans| spans.last().copied())
    }

    /// A span and those around it, outermost first.
    fn path(&self, innermost: Option<u64>) -> String {
        self.spans(|spans| {
            let mut texts = Vec::new();
            let mut next = innermost;
            while let Some(span) = next.and_then(|id| spans.get(&id)) {
                texts.push(span.text.as_str());
                next = span.parent;
            }
            texts.reverse();
            texts.join(":")
        })
    }
}

/// Where a span or an event belongs.
fn parent(explicit: Option<&Id>, is_root: bool, current: Option<u64>) -> Option<u64> {
    match explicit {
        Some(id) => Some(id.into_u64()),
        None if is_root => None,
        None => current,
    }
}

impl Subscriber for Forwarder {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let parent = parent(attributes.parent(), attributes.is_root(), self.current());
        let mut text = Text::new(attributes.metadata().name());
        // The user's code, which runs without the lock.
        attributes.record(&mut text);
        self.spans(|spans| {
            if let Some(parent) = parent.and_then(|id| spans.get_mut(&id)) {
                parent.handles += 1;
            }
            spans.insert(
                id,
                Span {
                    metadata: attributes.metadata(),
                    text: text.end(),
                    parent,
                    handles: 1,
                },
            );
        });
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Values<'_>) {
        let mut text = Text::default();
        values.record(&mut text);
        let added = text.end();
        self.spans(|spans| {
            if let Some(span) = spans.get_mut(&span.into_u64()) {
                let room = SPAN_MAX.saturating_sub(span.text.len());
                span.text.push_str(cut(&added, room));
            }
        });
    }

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let innermost = parent(event.parent(), event.is_root(), self.current());
        let spans = self.path(innermost);
        let mut fields = Fields::default();
        event.record(&mut Collect(&mut fields));
        let record = Record {
            level: number(*metadata.level()),
            line: metadata.line(),
            name: metadata.name(),
            target: metadata.target(),
            file: metadata.file().unwrap_or(""),
            module: metadata.module_path().unwrap_or(""),
            spans: cut(&spans, SPANS_MAX),
            ..Record::default()
        };
        write(&self.to, record, &fields);
    }

    fn enter(&self, span: &Id) {
        entered(|spans| spans.push(span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        entered(|spans| {
            // Guards may be dropped in any order.
            if let Some(at) = spans.iter().rposition(|id| *id == span.into_u64()) {
                spans.remove(at);
            }
        });
    }

    fn clone_span(&self, span: &Id) -> Id {
        self.spans(|spans| {
            if let Some(span) = spans.get_mut(&span.into_u64()) {
                span.handles += 1;
            }
        });
        span.clone()
    }

    fn try_close(&self, span: Id) -> bool {
        self.spans(|spans| {
            let mut next = Some(span.into_u64());
            let mut is_closed = false;
            // Each span holds a handle of the one around it.
            while let Some(id) = next {
                let Some(span) = spans.get_mut(&id) else {
                    break;
                };
                span.handles -= 1;
                if span.handles > 0 {
                    break;
                }
                is_closed = true;
                next = spans.remove(&id).and_then(|span| span.parent);
            }
            is_closed
        })
    }

    fn current_span(&self) -> Current {
        let Some(id) = self.current() else {
            return Current::none();
        };
        let metadata = self.spans(|spans| spans.get(&id).map(|span| span.metadata));
        metadata.map_or_else(Current::none, |metadata| {
            Current::new(Id::from_u64(id), metadata)
        })
    }
}

/// 1 error to 5 trace.
pub(super) fn number(level: Level) -> u8 {
    let all = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG];
    all.iter()
        .position(|one| *one == level)
        .map_or(5, |at| at as u8 + 1)
}

/// Writes into a text that ends where there is no more room.
struct Bounded {
    text: String,
    most: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = self.most - self.text.len();
        let taken = cut(more, room);
        self.text.push_str(taken);
        // An error ends the formatting of what may be endless.
        if taken.len() == more.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

fn shown(value: &dyn fmt::Debug, most: usize) -> String {
    let mut bounded = Bounded {
        text: String::new(),
        most,
    };
    // The text up to where it is full is what is wanted then.
    let _ = write!(bounded, "{value:?}");
    bounded.text
}

/// Collects the fields of an event.
struct Collect<'a>(&'a mut Fields);

impl Visit for Collect<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push(field.name(), Value::Float(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push(field.name(), Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push(field.name(), Value::Uint(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.0.push(field.name(), Value::Int128(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.0.push(field.name(), Value::Uint128(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push(field.name(), Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push(field.name(), Value::Text(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = shown(value, self.0.room(field.name()));
        self.0.push(field.name(), Value::Shown(&text));
    }
}

/// A span's name and fields as a text: `name{field=value field=value}`.
#[derive(Default)]
struct Text {
    text: String,
    has_fields: bool,
}

impl Text {
    fn new(name: &str) -> Self {
        Self {
            text: cut(name, SPAN_MAX / 2).to_owned(),
            has_fields: false,
        }
    }

    fn end(mut self) -> String {
        if self.has_fields {
            self.text.push('}');
        }
        self.text
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let room = (SPAN_MAX - 1).saturating_sub(self.text.len() + field.name().len() + 2);
        if room < 4 {
            return;
        }
        self.text.push(if self.has_fields { ' ' } else { '{' });
        self.has_fields = true;
        self.text.push_str(field.name());
        self.text.push('=');
        self.text.push_str(&shown(value, room));
    }
}

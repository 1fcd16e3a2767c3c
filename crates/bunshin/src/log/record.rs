//! A record as bytes, and back.
//!
//! A frame is [`MAGIC`], the length of the body in two bytes, the FNV-1a hash of the body in
//! four, and the body. Numbers are little-endian; a text is its length in two bytes and so
//! many bytes of UTF-8. The body is, in this order:
//!
//! | What | Bytes |
//! |---|---|
//! | level: 1 error to 5 trace | 1 |
//! | process id | 4 |
//! | task, plus one; 0 for none | 8 |
//! | line; 0 for none | 4 |
//! | process, name, target, file, module, spans | texts |
//! | number of fields | 1 |
//! | each field: its name, its kind, its value | text, 1, 1 to 16 or text |
//!
//! A frame is written whole or not at all. A reader that finds something else, as a process
//! gone wild has written to the pipe, goes on at the next magic.

use crate::sys::pipe::WHOLE_MAX;

const MAGIC: [u8; 4] = *b"bnl\x01";
const HEADER: usize = 10;

/// The longest texts, in bytes: together they fit into one write.
const PROCESS_MAX: usize = 128;
const PLACE_MAX: usize = 256;
pub(super) const SPANS_MAX: usize = 768;
const FIELDS_MAX: usize = 1700;
/// As many fields as the macros of `tracing` take.
pub(super) const FIELDS: usize = 32;

const _: () =
    assert!(HEADER + 17 + PROCESS_MAX + 4 * PLACE_MAX + SPANS_MAX + FIELDS_MAX + 6 * 2 < WHOLE_MAX);

/// One event, or one panic.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Record<'a> {
    /// 1 error to 5 trace.
    pub(super) level: u8,
    pub(super) pid: u32,
    pub(super) task: Option<u64>,
    pub(super) line: Option<u32>,
    pub(super) process: &'a str,
    pub(super) name: &'a str,
    pub(super) target: &'a str,
    pub(super) file: &'a str,
    pub(super) module: &'a str,
    pub(super) spans: &'a str,
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Float(f64),
    Int(i64),
    Uint(u64),
    Int128(i128),
    Uint128(u128),
    Bool(bool),
    Text(&'a str),
    /// What `Debug` or `Display` made of it.
    Shown(&'a str),
}

/// Fields as they go into a frame, as many as there is room for.
#[derive(Debug, Default)]
pub(super) struct Fields {
    bytes: Vec<u8>,
    count: u8,
}

impl Fields {
    /// Adds a field, with a long text cut; leaves it out if there is no room at all.
    pub(super) fn push(&mut self, name: &str, value: Value<'_>) {
        let (kind, number): (u8, &[u8]) = match &value {
            Value::Float(number) => (1, &number.to_le_bytes()),
            Value::Int(number) => (2, &number.to_le_bytes()),
            Value::Uint(number) => (3, &number.to_le_bytes()),
            Value::Int128(number) => (4, &number.to_le_bytes()),
            Value::Uint128(number) => (5, &number.to_le_bytes()),
            Value::Bool(is) => (6, &[u8::from(*is)]),
            Value::Text(_) => (7, &[]),
            Value::Shown(_) => (8, &[]),
        };
        let room = self.room(name);
        let is_text = number.is_empty();
        if usize::from(self.count) == FIELDS || room < if is_text { 4 } else { number.len() } {
            return;
        }
        self.count += 1;
        text(&mut self.bytes, name, PLACE_MAX);
        self.bytes.push(kind);
        self.bytes.extend_from_slice(number);
        if let Value::Text(long) | Value::Shown(long) = value {
            text(&mut self.bytes, long, room);
        }
    }

    /// Bytes that the text of a field of that name may have.
    pub(super) fn room(&self, name: &str) -> usize {
        let used = self.bytes.len() + name.len().min(PLACE_MAX) + 5;
        FIELDS_MAX.saturating_sub(used)
    }
}

/// Appends a text of so many bytes at most.
fn text(bytes: &mut Vec<u8>, text: &str, most: usize) {
    let text = cut(text, most);
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// The beginning of a text, whole characters.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Record<'_> {
    /// The frame of this record with those fields.
    pub(super) fn frame(&self, fields: &Fields) -> Vec<u8> {
        let mut frame = Vec::with_capacity(512);
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&[0; HEADER - 4]);
        frame.push(self.level);
        frame.extend_from_slice(&self.pid.to_le_bytes());
        let task = self.task.map_or(0, |task| task.wrapping_add(1));
        frame.extend_from_slice(&task.to_le_bytes());
        frame.extend_from_slice(&self.line.unwrap_or(0).to_le_bytes());
        text(&mut frame, self.process, PROCESS_MAX);
        for place in [self.name, self.target, self.file, self.module] {
            text(&mut frame, place, PLACE_MAX);
        }
        text(&mut frame, self.spans, SPANS_MAX);
        frame.push(fields.count);
        frame.extend_from_slice(&fields.bytes);
        let len = (frame.len() - HEADER) as u16;
        let check = hash(&frame[HEADER..]);
        frame[4..6].copy_from_slice(&len.to_le_bytes());
        frame[6..10].copy_from_slice(&check.to_le_bytes());
        frame
    }
}

fn hash(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

/// Takes the frames off the front of `bytes`, and what is none; says how many bytes that
/// were. The rest is the beginning of a frame.
pub(super) fn each(bytes: &[u8], mut work: impl FnMut(&Record<'_>, &[(&str, Value<'_>)])) -> usize {
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let start = &rest[..rest.len().min(MAGIC.len())];
        if !MAGIC.starts_with(start) {
            at += 1;
            continue;
        }
        let Some(header) = rest.get(..HEADER) else {
            break;
        };
        let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let check = u32::from_le_bytes([header[6], header[7], header[8], header[9]]);
        if HEADER + len > WHOLE_MAX {
            at += 1;
            continue;
        }
        let Some(body) = rest.get(HEADER..HEADER + len) else {
            break;
        };
        let read = (hash(body) == check).then(|| Reader { bytes: body }.record());
        match read.flatten() {
            Some((record, fields)) => {
                work(&record, &fields);
                at += HEADER + len;
            }
            None => at += 1,
        }
    }
    at
}

/// Reads a body; nothing is believed before it was checked.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = u16::from_le_bytes(self.array()?);
        std::str::from_utf8(self.take(len.into())?).ok()
    }

    fn record(&mut self) -> Option<(Record<'a>, Vec<(&'a str, Value<'a>)>)> {
        let level = self.byte().filter(|level| (1..=5).contains(level))?;
        let pid = u32::from_le_bytes(self.array()?);
        let task = u64::from_le_bytes(self.array()?).checked_sub(1);
        let line = Some(u32::from_le_bytes(self.array()?)).filter(|line| *line > 0);
        let record = Record {
            level,
            pid,
            task,
            line,
            process: self.text()?,
            name: self.text()?,
            target: self.text()?,
            file: self.text()?,
            module: self.text()?,
            spans: self.text()?,
        };
        let count = self.byte().filter(|count| usize::from(*count) <= FIELDS)?;
        let mut fields = Vec::with_capacity(count.into());
        for _ in 0..count {
            let name = self.text()?;
            let value = match self.byte()? {
                1 => Value::Float(f64::from_le_bytes(self.array()?)),
                2 => Value::Int(i64::from_le_bytes(self.array()?)),
                3 => Value::Uint(u64::from_le_bytes(self.array()?)),
                4 => Value::Int128(i128::from_le_bytes(self.array()?)),
                5 => Value::Uint128(u128::from_le_bytes(self.array()?)),
                6 => Value::Bool(self.byte()? != 0),
                7 => Value::Text(self.text()?),
                8 => Value::Shown(self.text()?),
                _ => return None,
            };
            fields.push((name, value));
        }
        self.bytes.is_empty().then_some((record, fields))
    }
}

#[cfg(test)]
mod tests {
    use super::{FIELDS, Fields, Record, Value, each};
    use crate::sys::pipe::WHOLE_MAX;

    fn example() -> Record<'static> {
        Record {
            level: 3,
            pid: 42,
            task: Some(0),
            line: Some(12),
            process: "Process-1",
            name: "event",
            target: "a::b",
            file: "a.rs",
            module: "a::b",
            spans: "outer{x=1}",
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let values = [
            ("message", Value::Shown("grüße")),
            ("float", Value::Float(-0.5)),
            ("int", Value::Int(i64::MIN)),
            ("uint", Value::Uint(u64::MAX)),
            ("wide", Value::Int128(i128::MIN)),
            ("wider", Value::Uint128(u128::MAX)),
            ("is", Value::Bool(true)),
            ("text", Value::Text("")),
        ];
        let mut fields = Fields::default();
        for (name, value) in values {
            fields.push(name, value);
        }
        let plain = Record {
            task: None,
            line: None,
            ..example()
        };
        let mut bytes = example().frame(&fields);
        bytes.extend(plain.frame(&Fields::default()));
        let whole = bytes.len();
        bytes.extend(&example().frame(&fields)[..20]);
        let mut seen = 0;
        let taken = each(&bytes, |record, fields| {
            seen += 1;
            if seen == 1 {
                assert_eq!((record, fields), (&example(), &values[..]));
            } else {
                assert_eq!((record, fields), (&plain, &[][..]));
            }
        });
        assert_eq!((seen, taken), (2, whole));
    }

    #[test]
    fn the_longest_record_is_written_whole() {
        let long = "ü".repeat(5000);
        let mut fields = Fields::default();
        for _ in 0..40 {
            fields.push(&long, Value::Text(&long));
            fields.push("number", Value::Uint128(1));
        }
        let record = Record {
            process: &long,
            name: &long,
            target: &long,
            file: &long,
            module: &long,
            spans: &long,
            ..example()
        };
        let frame = record.frame(&fields);
        assert!(frame.len() <= WHOLE_MAX, "{}", frame.len());
        let mut seen = 0;
        assert_eq!(each(&frame, |_, _| seen += 1), frame.len());
        assert_eq!(seen, 1);
        let mut many = Fields::default();
        (0..100).for_each(|_| many.push("n", Value::Bool(true)));
        let mut count = 0;
        each(&example().frame(&many), |_, fields| count = fields.len());
        assert_eq!(count, FIELDS);
    }

    #[test]
    fn what_is_no_frame_is_passed_over() {
        let good = example().frame(&Fields::default());
        // Each byte broken in turn, before a good one and after it.
        for at in 0..good.len() {
            let mut broken = good.clone();
            broken[at] ^= 0x55;
            let bytes = [&good[..], &broken, &good, &[0; WHOLE_MAX], &good].concat();
            let mut seen = 0;
            each(&bytes, |record, _| {
                seen += 1;
                assert_eq!(record, &example());
            });
            assert_eq!(seen, 3, "with byte {at} broken");
        }
        // Any bytes at all, of a simple generator.
        let mut state = 1u64;
        let mut noise = Vec::new();
        for _ in 0..20_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            noise.push((state >> 33) as u8);
        }
        each(&noise, |_, _| panic!("noise is no record"));
    }
}

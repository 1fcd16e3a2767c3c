//! What clients and a manager's server tell each other.
//!
//! Over a connection, a request is answered by one reply with the same call number, but for
//! [`Op::Release`], which is not answered. Numbers are little-endian.
//!
//! | Request | Size | What |
//! |---|---|---|
//! | 0 | 2 | what is asked: [`Op`] |
//! | 2 | 2 | zero |
//! | 4 | 4 | call number |
//! | 8 | 8 | the object |
//! | 16 | 8 | how long it may wait, in nanoseconds: 0 not at all, all ones for ever |
//! | 24 | 8 | a number: index, count, size |
//! | 32 | 8 | another one |
//! | 40 | | fields |
//!
//! | Reply | Size | What |
//! |---|---|---|
//! | 0 | 2 | how it went: [`Status`] |
//! | 2 | 2 | zero |
//! | 4 | 4 | call number |
//! | 8 | 8 | a number |
//! | 16 | | fields |
//!
//! | Field | Size | What |
//! |---|---|---|
//! | 0 | 4 | bytes of the value |
//! | 4 | 2 | objects of the server that the value names |
//! | 6 | 2 | handles of the message that are this value's; they come in the order of the fields |
//! | 8 | | the encoded value, then 8 bytes for each object |
//!
//! The first packet on a door (a socket that leads to a server) is described at [`Hello`].
//! Everything here is a function from bytes to a value or an error, and allocates nothing.

use crate::error::{Error, ErrorKind, Result};

/// The tag of a manager's frames.
pub(super) const TAG: u32 = u32::from_le_bytes(*b"mgr\x01");
/// Bytes of a request before its fields.
pub(super) const REQUEST: usize = 40;
/// Bytes of a reply before its fields.
pub(super) const REPLY: usize = 16;
/// Bytes of a field before its value.
pub(super) const FIELD: usize = 8;
/// For ever, as a time to wait.
pub(super) const FOREVER: u64 = u64::MAX;

fn corrupt(why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("a manager's message is corrupt: {why}"),
    )
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$line:meta])* $case:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub(super) enum $name {
            $($(#[$line])* $case = $number,)*
        }

        impl $name {
            fn from_number(number: u16) -> Result<Self> {
                match number {
                    $($number => Ok(Self::$case),)*
                    _ => Err(corrupt(concat!("there is no such ", $what))),
                }
            }
        }
    };
}

numbered! {
    /// What a request asks for.
    Op, "request" {
        /// Make an object; the number is its [`Kind`]. Answers with the object.
        Create = 1,
        /// Hold an object that came in a message.
        Adopt = 2,
        /// Let go of an object, so many times.
        Release = 3,
        /// Hold an object by the door that comes with the request, or came with one of the
        /// same number before.
        Lease = 4,
        /// End the server.
        Shutdown = 5,
        /// Give a value a name: the fields are the name, the value's type, and the value;
        /// without a value, the name is taken back.
        Publish = 6,
        /// Find a value by its name and type.
        Find = 7,
        /// How many objects and clients there are.
        Census = 8,
        /// Take back what an answer has given that came too late.
        Undo = 9,
        /// Make an object of the program's own, by the entry in the number.
        Make = 10,
        /// Call a method of such an object; the number says which.
        Method = 11,
        /// Run an entry on such an object.
        Enter = 12,
        /// Take connections at an address.
        Serve = 13,

        Get = 32,
        Put = 33,
        Take = 34,
        Has = 35,
        Len = 36,
        Clear = 37,
        Keys = 38,
        Values = 39,
        Items = 40,
        Update = 41,
        GetOrPut = 42,
        TakeAny = 43,

        Push = 48,
        Pop = 49,
        Insert = 50,
        Remove = 51,
        Truncate = 52,
        Reverse = 53,
        Swap = 54,
        Find1 = 55,
        Count = 56,
        Replace = 57,
        CompareAndSet = 58,

        Lock = 64,
        Unlock = 65,
        Recover = 66,
        Wait = 67,
        Notify = 68,
        NotifyAll = 69,
        Acquire = 70,
        Permits = 71,
        Add = 72,
        Set = 73,
        IsSet = 74,
        Reset = 75,
        Abort = 76,
        State = 77,

        Send = 80,
        Recv = 81,
        TaskDone = 82,
        Join = 83,
    }
}

numbered! {
    /// How a request went.
    Status, "status" {
        /// As asked.
        Ok = 0,
        /// There is no such key or element.
        Nothing = 1,
        /// It would have to wait, or the time is over.
        NotYet = 2,
        /// As asked; the holder before died with it.
        Abandoned = 3,
        /// A barrier is broken.
        Broken = 4,
        /// It cannot be; the number is an error's kind, the field says why.
        Failed = 5,
        /// A method panicked, or its arguments or result could not cross; the field is
        /// the encoded failure.
        Failure = 6,
    }
}

numbered! {
    /// What objects there are.
    Kind, "kind of object" {
        Dict = 1,
        List = 2,
        Cell = 3,
        Lock = 4,
        Semaphore = 5,
        Condition = 6,
        Event = 7,
        Barrier = 8,
        Queue = 9,
        User = 10,
    }
}

impl Op {
    /// Whether a client over a network may ask for it. What names a place in the program, what
    /// comes with a handle, and what concerns the server as a whole is for its own machine.
    pub(super) fn is_for_guests(self) -> bool {
        !matches!(
            self,
            Self::Shutdown | Self::Make | Self::Enter | Self::Serve
        )
    }
}

impl Kind {
    /// The kind that a request's number says.
    pub(super) fn from_code(number: u64) -> Result<Self> {
        Self::from_number(u16::try_from(number).unwrap_or(0))
    }
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// A request, in the bytes that it came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) op: Op,
    pub(super) call: u32,
    pub(super) object: u64,
    pub(super) wait: u64,
    pub(super) number: u64,
    pub(super) second: u64,
    pub(super) fields: Fields<'a>,
}

impl<'a> Request<'a> {
    /// Reads a request, and checks it to its last byte.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let Some(head) = bytes.first_chunk::<REQUEST>() else {
            return Err(corrupt("a request is too short"));
        };
        let number = |offset| at(head, offset).map_or(0, u64::from_le_bytes);
        Ok(Self {
            op: Op::from_number(u16::from_le_bytes([head[0], head[1]]))?,
            call: u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
            object: number(8),
            wait: number(16),
            number: number(24),
            second: number(32),
            fields: Fields::parse(&bytes[REQUEST..])?,
        })
    }

    /// Writes a request's head over the first bytes.
    pub(super) fn write(&self, bytes: &mut [u8; REQUEST]) {
        bytes[0..2].copy_from_slice(&(self.op as u16).to_le_bytes());
        bytes[2..4].fill(0);
        bytes[4..8].copy_from_slice(&self.call.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.object.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.wait.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.second.to_le_bytes());
    }
}

/// A reply, in the bytes that it came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyHead<'a> {
    pub(super) status: Status,
    pub(super) call: u32,
    pub(super) number: u64,
    pub(super) fields: Fields<'a>,
}

impl<'a> ReplyHead<'a> {
    /// Reads a reply, and checks it to its last byte.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let Some(head) = bytes.first_chunk::<REPLY>() else {
            return Err(corrupt("a reply is too short"));
        };
        Ok(Self {
            status: Status::from_number(u16::from_le_bytes([head[0], head[1]]))?,
            call: u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
            number: at(head, 8).map_or(0, u64::from_le_bytes),
            fields: Fields::parse(&bytes[REPLY..])?,
        })
    }

    /// The head of a reply.
    pub(super) fn head(status: Status, call: u32, number: u64) -> [u8; REPLY] {
        let mut bytes = [0; REPLY];
        bytes[0..2].copy_from_slice(&(status as u16).to_le_bytes());
        bytes[4..8].copy_from_slice(&call.to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        bytes
    }
}

/// The fields of a message, which have been checked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields<'a>(&'a [u8]);

/// A field: an encoded value, and what it names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) bytes: &'a [u8],
    named: &'a [u8],
    pub(super) handles: usize,
}

impl<'a> Field<'a> {
    /// The objects that the value names.
    pub(super) fn named(&self) -> impl Iterator<Item = u64> + use<'a> {
        let numbers = self.named.chunks_exact(8);
        numbers.filter_map(|number| at(number, 0).map(u64::from_le_bytes))
    }
}

impl<'a> Fields<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut rest = Self(bytes);
        while !rest.0.is_empty() {
            if rest.split().is_none() {
                return Err(corrupt("a field is longer than its message"));
            }
        }
        Ok(Self(bytes))
    }

    fn split(&mut self) -> Option<Field<'a>> {
        let head: [u8; FIELD] = at(self.0, 0)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let named = usize::from(u16::from_le_bytes([head[4], head[5]])) * 8;
        let (bytes, rest) = self.0[FIELD..].split_at_checked(len)?;
        let (named, rest) = rest.split_at_checked(named)?;
        self.0 = rest;
        Some(Field {
            bytes,
            named,
            handles: u16::from_le_bytes([head[6], head[7]]).into(),
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    #[inline]
    fn next(&mut self) -> Option<Field<'a>> {
        self.split()
    }
}

/// The head of a field.
pub(super) fn field_head(len: usize, named: usize, handles: usize) -> Result<[u8; FIELD]> {
    let long = |_| {
        Error::new(
            ErrorKind::InvalidInput,
            "a value for a manager has 4 GiB, or names 65536 objects or handles; less fits",
        )
    };
    let mut head = [0; FIELD];
    head[0..4].copy_from_slice(&u32::try_from(len).map_err(|_| long(()))?.to_le_bytes());
    head[4..6].copy_from_slice(&u16::try_from(named).map_err(|_| long(()))?.to_le_bytes());
    head[6..8].copy_from_slice(&u16::try_from(handles).map_err(|_| long(()))?.to_le_bytes());
    Ok(head)
}

/// A packet on a door: what it is, the protocol's version, the program's stamp in 8 bytes,
/// then the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hello<'a> {
    /// A process begins to be a client: with it comes the door of its own.
    Session,
    /// A connection for objects that the server makes; the rest is its encoded end.
    Link(&'a [u8]),
    /// A connection with a thread of its own in the server, for the program's own objects.
    Direct(&'a [u8]),
}

/// The longest packet on a door.
pub(super) const HELLO: usize = 512;
const HELLO_HEAD: usize = 10;
const HELLO_VERSION: u8 = 1;

impl<'a> Hello<'a> {
    /// Reads a packet from a process that runs the same program, by its stamp.
    pub(super) fn parse(bytes: &'a [u8], stamp: u64) -> Result<Self> {
        let Some(head) = bytes.first_chunk::<HELLO_HEAD>() else {
            return Err(corrupt("a greeting is too short"));
        };
        if head[1] != HELLO_VERSION || at(head, 2) != Some(stamp.to_le_bytes()) {
            return Err(corrupt("a greeting comes from another program"));
        }
        let rest = &bytes[HELLO_HEAD..];
        match head[0] {
            b's' => Ok(Self::Session),
            b'l' => Ok(Self::Link(rest)),
            b'd' => Ok(Self::Direct(rest)),
            _ => Err(corrupt("there is no such greeting")),
        }
    }

    pub(super) fn write(&self, stamp: u64) -> Vec<u8> {
        let (kind, rest): (u8, &[u8]) = match self {
            Self::Session => (b's', &[]),
            Self::Link(rest) => (b'l', rest),
            Self::Direct(rest) => (b'd', rest),
        };
        let mut bytes = vec![kind, HELLO_VERSION];
        bytes.extend_from_slice(&stamp.to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes
    }
}

/// What the connections of a process over a network have in common, and nobody else knows.
pub(super) type Token = [u8; 16];

/// The first message on a connection over a network, once both ends have shown the key:
/// what it is, the version, the token in 16 bytes, a number in 8.
///
/// It is answered by a reply. That to [`GuestHello::Session`] has one field: the new token,
/// then the longest message, and the milliseconds after which a connection without calls is
/// closed (0 for never), in 8 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuestHello {
    /// A process begins to be a client, until this connection ends.
    Session,
    /// A connection for calls to objects that the server makes.
    Link(Token),
    /// A connection with a thread of its own in the server, for the program's own objects.
    Direct(Token),
    /// A connection that travels in a message to keep objects for who receives it; the number
    /// is what later requests call it by.
    Lease(Token, u64),
}

/// Bytes of a guest's first message.
pub(super) const GUEST_HELLO: usize = 26;
const GUEST_VERSION: u8 = 1;
/// Bytes of the field that answers a new session.
const WELCOME: usize = 32;

impl GuestHello {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes: &[u8; GUEST_HELLO] = bytes
            .try_into()
            .map_err(|_| corrupt("a guest's greeting has another size"))?;
        if bytes[1] != GUEST_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "a manager's guest speaks version {} of the protocol, not {GUEST_VERSION}",
                    bytes[1]
                ),
            ));
        }
        let token = at(bytes, 2).unwrap_or_default();
        match bytes[0] {
            b's' => Ok(Self::Session),
            b'l' => Ok(Self::Link(token)),
            b'd' => Ok(Self::Direct(token)),
            b'k' => Ok(Self::Lease(
                token,
                at(bytes, 18).map_or(0, u64::from_le_bytes),
            )),
            _ => Err(corrupt("there is no such greeting of a guest")),
        }
    }

    pub(super) fn write(&self) -> [u8; GUEST_HELLO] {
        let (kind, token, number) = match self {
            Self::Session => (b's', Token::default(), 0),
            Self::Link(token) => (b'l', *token, 0),
            Self::Direct(token) => (b'd', *token, 0),
            Self::Lease(token, number) => (b'k', *token, *number),
        };
        let mut bytes = [0; GUEST_HELLO];
        bytes[0..2].copy_from_slice(&[kind, GUEST_VERSION]);
        bytes[2..18].copy_from_slice(&token);
        bytes[18..26].copy_from_slice(&u64::to_le_bytes(number));
        bytes
    }
}

/// What a new guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) token: Token,
    pub(super) limit: u64,
    pub(super) idle_ms: u64,
}

impl Welcome {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes: &[u8; WELCOME] = bytes
            .try_into()
            .map_err(|_| corrupt("a welcome has another size"))?;
        Ok(Self {
            token: at(bytes, 0).unwrap_or_default(),
            limit: at(bytes, 16).map_or(0, u64::from_le_bytes),
            idle_ms: at(bytes, 24).map_or(0, u64::from_le_bytes),
        })
    }

    pub(super) fn write(&self) -> [u8; WELCOME] {
        let mut bytes = [0; WELCOME];
        bytes[0..16].copy_from_slice(&self.token);
        bytes[16..24].copy_from_slice(&self.limit.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.idle_ms.to_le_bytes());
        bytes
    }
}

/// Kinds of errors that cross, by position.
const KINDS: &[ErrorKind] = &[
    ErrorKind::Os,
    ErrorKind::InvalidInput,
    ErrorKind::TypeMismatch,
    ErrorKind::OutOfMemory,
    ErrorKind::Unsupported,
    ErrorKind::Corrupt,
    ErrorKind::Decode,
    ErrorKind::Encode,
    ErrorKind::Closed,
    ErrorKind::Busy,
    ErrorKind::Disconnected,
    ErrorKind::TimedOut,
    ErrorKind::Abandoned,
    ErrorKind::Initializer,
    ErrorKind::Threads,
    ErrorKind::Authentication,
];

pub(super) fn number_of(kind: ErrorKind) -> u64 {
    KINDS
        .iter()
        .position(|known| *known == kind)
        .unwrap_or_default() as u64
}

pub(super) fn kind_of(number: u64) -> ErrorKind {
    let index = usize::try_from(number).unwrap_or(usize::MAX);
    KINDS.get(index).copied().unwrap_or(ErrorKind::Os)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Vec<u8> {
        let mut bytes = vec![0; REQUEST];
        let request = Request {
            op: Op::Put,
            call: 7,
            object: 9,
            wait: FOREVER,
            number: 3,
            second: 4,
            fields: Fields(&[]),
        };
        request.write(bytes.first_chunk_mut().unwrap());
        bytes.extend(field_head(3, 1, 2).unwrap());
        bytes.extend(b"key");
        bytes.extend(11u64.to_le_bytes());
        bytes.extend(field_head(0, 0, 0).unwrap());
        bytes
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let bytes = request();
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.op, request.call, request.object), (Op::Put, 7, 9));
        assert_eq!(
            (request.wait, request.number, request.second),
            (FOREVER, 3, 4)
        );
        let fields: Vec<_> = request.fields.collect();
        assert_eq!((fields[0].bytes, fields[0].handles), (&b"key"[..], 2));
        assert_eq!(fields[0].named().collect::<Vec<_>>(), [11]);
        assert_eq!((fields[1].bytes, fields.len()), (&b""[..], 2));
    }

    #[test]
    fn a_guest_s_greeting_and_its_answer_are_read_as_they_were_written() {
        for hello in [
            GuestHello::Session,
            GuestHello::Link([1; 16]),
            GuestHello::Direct([2; 16]),
            GuestHello::Lease([3; 16], 4),
        ] {
            let bytes = hello.write();
            assert_eq!(GuestHello::parse(&bytes).unwrap(), hello);
            assert!(GuestHello::parse(&bytes[1..]).is_err());
            let mut other = bytes;
            other[1] = 9;
            let error = GuestHello::parse(&other).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
        let welcome = Welcome {
            token: [5; 16],
            limit: 6,
            idle_ms: 7,
        };
        assert_eq!(Welcome::parse(&welcome.write()).unwrap(), welcome);
        assert!(Welcome::parse(&[0; 31]).is_err());
    }

    #[test]
    fn no_prefix_and_no_changed_byte_panics() {
        let bytes = request();
        for len in 0..bytes.len() {
            let parsed = Request::parse(&bytes[..len]);
            let is_whole = len == REQUEST || len == REQUEST + FIELD + 3 + 8;
            assert_eq!(parsed.is_ok(), is_whole, "{len}");
        }
        for position in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[position] = value;
                if let Ok(request) = Request::parse(&bytes) {
                    let total: usize = request.fields.map(|field| field.bytes.len()).sum();
                    assert!(total <= bytes.len());
                }
                let _ = ReplyHead::parse(&bytes);
                let _ = Hello::parse(&bytes, 5);
            }
        }
    }

    #[test]
    fn kinds_of_errors_cross() {
        for kind in KINDS {
            assert_eq!(kind_of(number_of(*kind)), *kind);
        }
        assert_eq!(kind_of(u64::MAX), ErrorKind::Os);
    }

    #[test]
    fn a_greeting_of_another_program_is_refused() {
        let bytes = Hello::Link(b"form").write(5);
        assert_eq!(Hello::parse(&bytes, 5).unwrap(), Hello::Link(b"form"));
        assert!(Hello::parse(&bytes, 6).is_err());
        assert!(Hello::parse(&bytes[..9], 5).is_err());
    }
}

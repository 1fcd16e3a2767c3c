//! Bytes to values, in the form that `format` describes.
//!
//! The bytes come from another process: whatever they are, reading them ends in a value or
//! in an error, goes only so deep, and takes no memory that they do not account for.

use serde::Deserializer;
use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};

use super::format::{self, Fault};

/// Reads values from the front of some bytes.
pub(crate) struct Reader<'de> {
    bytes: &'de [u8],
    /// How many levels deeper it may go.
    depth: usize,
    /// The name that comes next if a struct is as its type says; or nothing.
    expected: &'static str,
}

/// The first byte of the map with the most entries that it has room for.
const SHORT_MAP_END: u8 = format::SHORT_MAP + format::SHORT_MAX as u8;

type Result<T> = std::result::Result<T, Fault>;

fn short() -> Fault {
    Fault::new("it ends inside a value")
}

impl<'de> Reader<'de> {
    /// For values that are nested `depth` levels deep at most.
    pub(crate) fn new(bytes: &'de [u8], depth: usize) -> Self {
        Self {
            bytes,
            depth,
            expected: "",
        }
    }

    #[inline]
    fn peek(&self) -> Result<u8> {
        self.bytes.first().copied().ok_or_else(short)
    }

    #[inline]
    fn first(&mut self) -> Result<u8> {
        let (first, rest) = self.bytes.split_first().ok_or_else(short)?;
        self.bytes = rest;
        Ok(*first)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'de [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or_else(short)?;
        self.bytes = rest;
        Ok(taken)
    }

    #[inline]
    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(short)?;
        self.bytes = rest;
        Ok(*taken)
    }

    #[inline]
    fn length(&mut self) -> Result<usize> {
        format::take_length(&mut self.bytes)
    }

    /// The rest of a text whose first byte has been taken; nothing if that is no text's.
    #[inline]
    fn text(&mut self, first: u8) -> Result<Option<&'de str>> {
        let len = match first {
            format::SHORT_TEXT..format::SHORT_SEQ => usize::from(first - format::SHORT_TEXT),
            format::TEXT => self.length()?,
            _ => return Ok(None),
        };
        let text = std::str::from_utf8(self.take(len)?);
        text.map(Some)
            .map_err(|_| Fault::new("a text is no valid UTF-8"))
    }

    /// Goes one level deeper for the time of `work`.
    #[inline]
    fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth = self
            .depth
            .checked_sub(1)
            .ok_or_else(|| Fault::new("it is nested too deep"))?;
        let result = work(self);
        self.depth += 1;
        result
    }

    /// Shows a visitor the values of a sequence, which must take them all.
    #[inline]
    fn sequence<V: Visitor<'de>>(&mut self, left: Option<usize>, visitor: V) -> Result<V::Value> {
        self.deeper(|reader| {
            let mut parts = Parts {
                reader,
                left,
                names: &[],
            };
            let value = visitor.visit_seq(&mut parts)?;
            parts.finish()?;
            Ok(value)
        })
    }

    #[inline]
    fn map<V: Visitor<'de>>(
        &mut self,
        left: Option<usize>,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.deeper(|reader| {
            let mut parts = Parts {
                reader,
                left,
                names,
            };
            let value = visitor.visit_map(&mut parts)?;
            parts.finish()?;
            Ok(value)
        })
    }

    /// Reads whatever is there, `first` being its first byte.
    fn any<V: Visitor<'de>>(&mut self, first: u8, visitor: V) -> Result<V::Value> {
        match first {
            0..=0x7f => visitor.visit_u8(first),
            format::UNIT => visitor.visit_unit(),
            format::NONE => visitor.visit_none(),
            format::SOME => self.deeper(|reader| visitor.visit_some(reader)),
            format::FALSE => visitor.visit_bool(false),
            format::TRUE => visitor.visit_bool(true),
            format::U8 => visitor.visit_u8(self.first()?),
            format::U16 => visitor.visit_u16(u16::from_le_bytes(self.number()?)),
            format::U32 => visitor.visit_u32(u32::from_le_bytes(self.number()?)),
            format::U64 => visitor.visit_u64(u64::from_le_bytes(self.number()?)),
            format::U128 => visitor.visit_u128(u128::from_le_bytes(self.number()?)),
            format::I8 => visitor.visit_i8(i8::from_le_bytes(self.number()?)),
            format::I16 => visitor.visit_i16(i16::from_le_bytes(self.number()?)),
            format::I32 => visitor.visit_i32(i32::from_le_bytes(self.number()?)),
            format::I64 => visitor.visit_i64(i64::from_le_bytes(self.number()?)),
            format::I128 => visitor.visit_i128(i128::from_le_bytes(self.number()?)),
            format::F32 => visitor.visit_f32(f32::from_le_bytes(self.number()?)),
            format::F64 => visitor.visit_f64(f64::from_le_bytes(self.number()?)),
            format::CHAR => {
                let number = u32::from_le_bytes(self.number()?);
                visitor.visit_char(
                    char::from_u32(number).ok_or_else(|| Fault::new("a character is none"))?,
                )
            }
            format::TEXT | format::SHORT_TEXT..format::SHORT_SEQ => match self.text(first)? {
                Some(text) => visitor.visit_borrowed_str(text),
                None => Err(short()),
            },
            format::BYTES => {
                let len = self.length()?;
                visitor.visit_borrowed_bytes(self.take(len)?)
            }
            format::RUN => {
                let len = self.length()?;
                let run = self.take(len)?;
                let mut bytes = Run(run.iter());
                let value = visitor.visit_seq(&mut bytes)?;
                finished(bytes.0.len())?;
                Ok(value)
            }
            format::SHORT_SEQ..format::SHORT_MAP => {
                self.sequence(Some(usize::from(first - format::SHORT_SEQ)), visitor)
            }
            format::SEQ => {
                let len = self.length()?;
                self.sequence(Some(len), visitor)
            }
            format::OPEN_SEQ => self.sequence(None, visitor),
            format::SHORT_MAP..=SHORT_MAP_END => {
                self.map(Some(usize::from(first - format::SHORT_MAP)), &[], visitor)
            }
            format::MAP => {
                let len = self.length()?;
                self.map(Some(len), &[], visitor)
            }
            format::OPEN_MAP => self.map(None, &[], visitor),
            // For those who look before they decide: a map with one entry.
            format::VARIANT => self.map(Some(1), &[], visitor),
            other => Err(Fault::new(format!("byte {other:#x} begins no value"))),
        }
    }

    /// The first byte of a value that is not to be an option: if it is one, what is in it.
    #[inline]
    fn bare(&mut self) -> Result<u8> {
        loop {
            let first = self.first()?;
            if first != format::SOME {
                return Ok(first);
            }
        }
    }
}

fn finished(left: usize) -> Result<()> {
    if left == 0 {
        Ok(())
    } else {
        Err(Fault::new(format!("{left} values are left over")))
    }
}

macro_rules! bare {
    ($($method:ident($($argument:ty),*);)*) => {
        $(
            #[inline]
            fn $method<V: Visitor<'de>>(self $(, _: $argument)*, visitor: V) -> Result<V::Value> {
                let first = self.bare()?;
                self.any(first, visitor)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Fault;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let first = self.first()?;
        self.any(first, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.peek()? {
            format::NONE => {
                self.first()?;
                visitor.visit_none()
            }
            format::SOME => {
                self.first()?;
                self.deeper(|reader| visitor.visit_some(reader))
            }
            // A field that has become optional.
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.bare()? {
            format::UNIT | format::NONE => visitor.visit_unit(),
            first => self.any(first, visitor),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.bare()? {
            format::RUN | format::BYTES => {
                let len = self.length()?;
                visitor.visit_borrowed_bytes(self.take(len)?)
            }
            first => self.any(first, visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.bare()? {
            // Who writes bytes and reads a sequence gets one.
            format::BYTES => self.any(format::RUN, visitor),
            first => self.any(first, visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        match self.bare()? {
            first @ format::SHORT_MAP..=SHORT_MAP_END => {
                let left = usize::from(first - format::SHORT_MAP);
                self.map(Some(left), fields, visitor)
            }
            first => self.any(first, visitor),
        }
    }

    #[inline]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let name = std::mem::take(&mut self.expected);
        let len = name.len();
        // Known text need not be checked again for being text.
        if (1..=format::SHORT_TEXT_MAX).contains(&len)
            && self.peek()? == format::SHORT_TEXT | len as u8
            && self.bytes.get(1..=len) == Some(name.as_bytes())
        {
            self.take(1 + len)?;
            return visitor.visit_borrowed_str(name);
        }
        let first = self.bare()?;
        self.any(first, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let first = self.bare()?;
        if first == format::VARIANT {
            return self.deeper(|reader| visitor.visit_enum(Holding(reader)));
        }
        match self.text(first)? {
            Some(name) => visitor.visit_enum(Bare(name)),
            None => Err(de::Error::invalid_type(
                Unexpected::Other("no variant"),
                &visitor,
            )),
        }
    }

    bare! {
        deserialize_bool();
        deserialize_i8();
        deserialize_i16();
        deserialize_i32();
        deserialize_i64();
        deserialize_i128();
        deserialize_u8();
        deserialize_u16();
        deserialize_u32();
        deserialize_u64();
        deserialize_u128();
        deserialize_f32();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_map();
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_any(visitor)
    }
}

/// The values of a sequence or a map.
struct Parts<'r, 'de> {
    reader: &'r mut Reader<'de>,
    /// How many are still to come; nothing where a mark ends them.
    left: Option<usize>,
    /// The fields that a struct has, for as long as they come in this order.
    names: &'static [&'static str],
}

impl Parts<'_, '_> {
    /// Whether there is another one.
    #[inline]
    fn next(&mut self) -> Result<bool> {
        match &mut self.left {
            Some(0) => Ok(false),
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None if self.reader.peek()? == format::END => {
                self.reader.first()?;
                self.left = Some(0);
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// To be asked when the visitor has had enough.
    fn finish(self) -> Result<()> {
        match self.left {
            Some(left) => finished(left),
            None if self.reader.first()? == format::END => Ok(()),
            None => Err(Fault::new("some values are left over")),
        }
    }

    /// Each value takes a byte at least, so that nobody makes room for more than there are.
    fn at_most(&self) -> Option<usize> {
        self.left.map(|left| left.min(self.reader.bytes.len()))
    }
}

impl<'de> SeqAccess<'de> for Parts<'_, 'de> {
    type Error = Fault;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        if self.next()? {
            seed.deserialize(&mut *self.reader).map(Some)
        } else {
            Ok(None)
        }
    }

    fn size_hint(&self) -> Option<usize> {
        self.at_most()
    }
}

impl<'de> MapAccess<'de> for Parts<'_, 'de> {
    type Error = Fault;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        if let Some((name, names)) = self.names.split_first() {
            self.names = names;
            self.reader.expected = name;
        }
        self.next_element_seed(seed)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        // Unless the key was no name.
        self.reader.expected = "";
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        self.at_most()
    }
}

/// The numbers of a run.
struct Run<'de>(std::slice::Iter<'de, u8>);

impl<'de> SeqAccess<'de> for Run<'de> {
    type Error = Fault;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        match self.0.next() {
            Some(byte) => seed
                .deserialize(IntoDeserializer::<Fault>::into_deserializer(*byte))
                .map(Some),
            None => Ok(None),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

/// A variant that holds nothing.
struct Bare<'de>(&'de str);

impl<'de> EnumAccess<'de> for Bare<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self)> {
        let name = de::value::BorrowedStrDeserializer::<Fault>::new(self.0);
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Bare<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<()> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value> {
        Err(holds_nothing(self.0))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value> {
        Err(holds_nothing(self.0))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value> {
        Err(holds_nothing(self.0))
    }
}

fn holds_nothing(name: &str) -> Fault {
    Fault::new(format!("variant {name} holds nothing and should"))
}

/// A variant that holds something.
struct Holding<'r, 'de>(&'r mut Reader<'de>);

impl<'de> EnumAccess<'de> for Holding<'_, 'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self)> {
        let first = self.0.first()?;
        let Some(name) = self.0.text(first)? else {
            return Err(Fault::new("a variant has no name"));
        };
        let name = de::value::BorrowedStrDeserializer::<Fault>::new(name);
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Holding<'_, 'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<()> {
        // Written by a type that gave it something to hold; that is nobody's here.
        serde::Deserialize::deserialize(self.0).map(|de::IgnoredAny| ())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value> {
        seed.deserialize(self.0)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value> {
        self.0.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.0.deserialize_struct("", fields, visitor)
    }
}

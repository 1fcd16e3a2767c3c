//! Values to bytes, in the form that `format` describes.

use serde::{Serialize, Serializer, ser};

use super::format::{self, Fault};
use super::one_byte::OneByte;

/// Writes values to the end of a vector.
pub(crate) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    /// How many levels deeper it may go.
    depth: usize,
}

/// A sequence, map, struct or variant that is being written.
pub(crate) struct Parts<'w, 'a> {
    writer: &'w mut Writer<'a>,
    /// How many are still to come; nothing if that is not known.
    left: Option<usize>,
    /// How many levels deeper it lies.
    levels: usize,
}

impl<'a> Writer<'a> {
    /// For values that are nested `depth` levels deep at most.
    pub(crate) fn new(bytes: &'a mut Vec<u8>, depth: usize) -> Self {
        Self { bytes, depth }
    }

    /// Appends a first byte and a number, with one look at whether there is room.
    #[inline(always)]
    fn put<const N: usize>(&mut self, first: u8, number: [u8; N]) {
        self.bytes.reserve(1 + N);
        self.bytes.push(first);
        self.bytes.extend_from_slice(&number);
    }

    #[inline(always)]
    fn text(&mut self, text: &str) {
        if text.len() <= format::SHORT_TEXT_MAX {
            self.bytes.reserve(1 + text.len());
            self.bytes.push(format::SHORT_TEXT | text.len() as u8);
        } else {
            self.head(format::TEXT, text.len());
        }
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn head(&mut self, first: u8, length: usize) {
        self.bytes.push(first);
        format::put_length(self.bytes, length);
    }

    #[inline]
    fn enter(&mut self) -> Result<(), Fault> {
        match self.depth.checked_sub(1) {
            Some(depth) => {
                self.depth = depth;
                Ok(())
            }
            None => Err(Fault::new("it is nested too deep")),
        }
    }

    #[inline]
    fn leave(&mut self, levels: usize) {
        self.depth += levels;
    }

    /// Writes what lies one level deeper.
    #[inline]
    fn inside<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fault> {
        self.enter()?;
        value.serialize(&mut *self)?;
        self.leave(1);
        Ok(())
    }

    #[inline]
    fn parts<'w>(
        &'w mut self,
        left: Option<usize>,
        [short, long, open]: [u8; 3],
    ) -> Result<Parts<'w, 'a>, Fault> {
        self.enter()?;
        match left {
            Some(n) if n <= format::SHORT_MAX => self.bytes.push(short | n as u8),
            Some(n) => self.head(long, n),
            None => self.bytes.push(open),
        }
        Ok(Parts {
            writer: self,
            left,
            levels: 1,
        })
    }

    #[inline]
    fn sequence<'w>(&'w mut self, left: Option<usize>) -> Result<Parts<'w, 'a>, Fault> {
        self.parts(left, [format::SHORT_SEQ, format::SEQ, format::OPEN_SEQ])
    }

    #[inline]
    fn map<'w>(&'w mut self, left: Option<usize>) -> Result<Parts<'w, 'a>, Fault> {
        self.parts(left, [format::SHORT_MAP, format::MAP, format::OPEN_MAP])
    }

    fn variant(&mut self, name: &str) {
        self.bytes.push(format::VARIANT);
        self.text(name);
    }

    /// The parts of a variant lie one level deeper than the variant.
    fn below<'w>(mut parts: Parts<'w, 'a>) -> Result<Parts<'w, 'a>, Fault> {
        parts.writer.enter()?;
        parts.levels += 1;
        Ok(parts)
    }
}

impl<'w, 'a> Serializer for &'w mut Writer<'a> {
    type Ok = ();
    type Error = Fault;
    type SerializeSeq = Parts<'w, 'a>;
    type SerializeTuple = Parts<'w, 'a>;
    type SerializeTupleStruct = Parts<'w, 'a>;
    type SerializeTupleVariant = Parts<'w, 'a>;
    type SerializeMap = Parts<'w, 'a>;
    type SerializeStruct = Parts<'w, 'a>;
    type SerializeStructVariant = Parts<'w, 'a>;

    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), Fault> {
        self.bytes
            .push(if value { format::TRUE } else { format::FALSE });
        Ok(())
    }

    #[inline]
    fn serialize_i8(self, value: i8) -> Result<(), Fault> {
        self.serialize_i64(value.into())
    }

    #[inline]
    fn serialize_i16(self, value: i16) -> Result<(), Fault> {
        self.serialize_i64(value.into())
    }

    #[inline]
    fn serialize_i32(self, value: i32) -> Result<(), Fault> {
        self.serialize_i64(value.into())
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result<(), Fault> {
        if let Ok(value) = u64::try_from(value) {
            return self.serialize_u64(value);
        }
        if let Ok(value) = i8::try_from(value) {
            self.put(format::I8, value.to_le_bytes());
        } else if let Ok(value) = i16::try_from(value) {
            self.put(format::I16, value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.put(format::I32, value.to_le_bytes());
        } else {
            self.put(format::I64, value.to_le_bytes());
        }
        Ok(())
    }

    fn serialize_i128(self, value: i128) -> Result<(), Fault> {
        if let Ok(value) = u128::try_from(value) {
            return self.serialize_u128(value);
        }
        if let Ok(value) = i64::try_from(value) {
            return self.serialize_i64(value);
        }
        self.put(format::I128, value.to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_u8(self, value: u8) -> Result<(), Fault> {
        self.serialize_u64(value.into())
    }

    #[inline]
    fn serialize_u16(self, value: u16) -> Result<(), Fault> {
        self.serialize_u64(value.into())
    }

    #[inline]
    fn serialize_u32(self, value: u32) -> Result<(), Fault> {
        self.serialize_u64(value.into())
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result<(), Fault> {
        if value < 0x80 {
            self.bytes.push(value as u8);
        } else if let Ok(value) = u8::try_from(value) {
            self.put(format::U8, [value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.put(format::U16, value.to_le_bytes());
        } else if let Ok(value) = u32::try_from(value) {
            self.put(format::U32, value.to_le_bytes());
        } else {
            self.put(format::U64, value.to_le_bytes());
        }
        Ok(())
    }

    fn serialize_u128(self, value: u128) -> Result<(), Fault> {
        if let Ok(value) = u64::try_from(value) {
            return self.serialize_u64(value);
        }
        self.put(format::U128, value.to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<(), Fault> {
        self.put(format::F32, value.to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<(), Fault> {
        self.put(format::F64, value.to_le_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Fault> {
        self.put(format::CHAR, u32::from(value).to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), Fault> {
        self.text(value);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Fault> {
        self.head(format::BYTES, value.len());
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Fault> {
        self.bytes.push(format::NONE);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Fault> {
        self.bytes.push(format::SOME);
        self.inside(value)
    }

    fn serialize_unit(self) -> Result<(), Fault> {
        self.bytes.push(format::UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), Fault> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<(), Fault> {
        self.text(variant);
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), Fault> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Fault> {
        self.variant(variant);
        self.inside(value)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, Fault> {
        self.sequence(len)
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, Fault> {
        self.sequence(Some(len))
    }

    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, Fault> {
        self.sequence(Some(len))
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, Fault> {
        self.variant(variant);
        Writer::below(self.sequence(Some(len))?)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, Fault> {
        self.map(len)
    }

    fn serialize_struct(
        self,
        _name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStruct, Fault> {
        self.map(Some(len))
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, Fault> {
        self.variant(variant);
        Writer::below(self.map(Some(len))?)
    }

    /// Vectors and slices come here, those of bytes too, which are written as one run.
    fn collect_seq<I>(self, items: I) -> Result<(), Fault>
    where
        I: IntoIterator,
        I::Item: Serialize,
    {
        let items = items.into_iter();
        let len = match items.size_hint() {
            (low, Some(high)) if low == high => Some(low),
            _ => None,
        };
        // To try an item out would not do: a handle that is encoded twice is sent twice.
        let is_byte = matches!(std::any::type_name::<I::Item>(), "u8" | "&u8");
        match len {
            Some(len) if is_byte => self.run(items, len),
            _ => {
                let mut parts = self.sequence(len)?;
                for item in items {
                    parts.part(&item)?;
                }
                parts.close()
            }
        }
    }
}

impl Writer<'_> {
    fn run<I>(&mut self, mut items: I, len: usize) -> Result<(), Fault>
    where
        I: Iterator,
        I::Item: Serialize,
    {
        self.head(format::RUN, len);
        self.bytes.reserve(len);
        let start = self.bytes.len();
        // By the piece: asking for each byte whether it has room takes far longer.
        let mut piece = [0; 512];
        loop {
            let mut filled = 0;
            for (slot, item) in piece.iter_mut().zip(&mut items) {
                *slot = item.serialize(OneByte)?;
                filled += 1;
            }
            self.bytes.extend_from_slice(&piece[..filled]);
            if filled < piece.len() {
                break;
            }
        }
        if self.bytes.len() - start == len {
            Ok(())
        } else {
            Err(Fault::new("a sequence has another length than it said"))
        }
    }
}

impl Parts<'_, '_> {
    /// Writes one value, which is one of those that were announced.
    #[inline]
    fn part<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fault> {
        self.count()?;
        value.serialize(&mut *self.writer)
    }

    #[inline(always)]
    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Fault> {
        self.count()?;
        self.writer.text(name);
        value.serialize(&mut *self.writer)
    }

    #[inline]
    fn count(&mut self) -> Result<(), Fault> {
        if let Some(left) = &mut self.left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(Fault::new("it has more parts than it said")),
            }
        }
        Ok(())
    }

    #[inline]
    fn close(self) -> Result<(), Fault> {
        match self.left {
            None => self.writer.bytes.push(format::END),
            Some(0) => {}
            Some(_) => return Err(Fault::new("it has fewer parts than it said")),
        }
        self.writer.leave(self.levels);
        Ok(())
    }
}

macro_rules! parts {
    ($trait:ident $method:ident) => {
        impl ser::$trait for Parts<'_, '_> {
            type Ok = ();
            type Error = Fault;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fault> {
                self.part(value)
            }

            #[inline]
            fn end(self) -> Result<(), Fault> {
                self.close()
            }
        }
    };
}

parts!(SerializeSeq serialize_element);
parts!(SerializeTuple serialize_element);
parts!(SerializeTupleStruct serialize_field);
parts!(SerializeTupleVariant serialize_field);

macro_rules! fields {
    ($trait:ident) => {
        impl ser::$trait for Parts<'_, '_> {
            type Ok = ();
            type Error = Fault;

            // The length of the name is known where this is used.
            #[inline(always)]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Fault> {
                self.field(name, value)
            }

            #[inline]
            fn end(self) -> Result<(), Fault> {
                self.close()
            }
        }
    };
}

fields!(SerializeStruct);
fields!(SerializeStructVariant);

impl ser::SerializeMap for Parts<'_, '_> {
    type Ok = ();
    type Error = Fault;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Fault> {
        self.part(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fault> {
        value.serialize(&mut *self.writer)
    }

    fn end(self) -> Result<(), Fault> {
        self.close()
    }
}

//! Tests of the form that values take.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};

use super::attachments::{Incoming, Outgoing};
use super::format::{self, put_length, take_length};
use super::serde::{decode, encode};
use crate::error::{ErrorKind, Result};

fn written<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(value, &mut bytes, &mut Outgoing::default()).expect("it can be written");
    bytes
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    decode(bytes, &mut Incoming::default())
}

#[track_caller]
fn trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
    let bytes = written(&value);
    match read::<T>(&bytes) {
        Ok(back) => assert_eq!(back, value, "{bytes:x?}"),
        Err(error) => panic!("{value:?}: {error}: {bytes:x?}"),
    }
    // Cut off anywhere, it is an error, or at least no panic.
    for len in 0..bytes.len() {
        assert!(read::<T>(&bytes[..len]).is_err(), "{value:?} cut to {len}");
    }
    assert!(read::<IgnoredAny>(&bytes).is_ok(), "{value:?} to skip");
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    absent: Option<u8>,
    nested: Option<Option<()>>,
    unit: Option<Unit>,
    #[serde(skip)]
    skipped: u8,
    pair: (u8, char),
    plain: Plain,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Plain {
    Unit,
    New(Vec<u8>),
    Tuple(i8, Option<()>),
    Struct { field: [u8; 3] },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    #[serde(flatten)]
    inner: Inner,
    #[serde(flatten)]
    rest: BTreeMap<String, Option<Vec<u8>>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u8),
    Bytes(Vec<u8>),
    Inner(Inner),
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Inner(Inner),
    Struct { bytes: Vec<u8>, some: Option<()> },
    Unit,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "content")]
enum Adjacent {
    Bytes(Vec<u8>),
    Inner { inner: Inner },
    Unit,
}

fn inner(plain: Plain) -> Inner {
    Inner {
        bytes: vec![0, 127, 128, 255],
        absent: None,
        nested: Some(Some(())),
        unit: Some(Unit),
        skipped: 0,
        pair: (200, 'ß'),
        plain,
    }
}

fn plains() -> [Plain; 4] {
    [
        Plain::Unit,
        Plain::New(vec![1; 300]),
        Plain::Tuple(-1, Some(())),
        Plain::Struct { field: [7, 8, 255] },
    ]
}

#[test]
fn numbers_of_every_width_arrive() {
    for shift in 0..128 {
        for around in [-1, 0, 1] {
            let number = (1i128 << shift.min(126)).wrapping_add(around);
            trip(number);
            trip(-number);
            trip(number as u128);
            trip(number as u64);
            trip(number as i64);
            trip(number as u32);
            trip(number as i32);
            trip(number as i16);
            trip(number as u16);
            trip(number as i8);
            trip(number as u8);
        }
    }
    trip((u128::MAX, i128::MIN, i128::MAX));
    trip((f32::MIN_POSITIVE, f64::MAX, f64::NEG_INFINITY, -0.0f64));
    assert!(read::<f64>(&written(&f64::NAN)).unwrap().is_nan());
    assert!(read::<u8>(&written(&256u16)).is_err());
    assert!(read::<u64>(&written(&-1i8)).is_err());
}

#[test]
fn what_looks_like_nothing_is_not_lost() {
    trip(Some(()));
    trip(Option::<()>::None);
    trip(Some(Option::<u8>::None));
    trip(Some(Some(Option::<u8>::None)));
    trip(Option::<Option<Option<u8>>>::None);
    trip(vec![Some(Unit), None]);
    trip(HashMap::from([
        (1u8, Some(Some(()))),
        (2, Some(None)),
        (3, None),
    ]));
    // A field that has become optional, and one that is so no more.
    assert_eq!(read::<Option<u8>>(&written(&7u8)).unwrap(), Some(7));
    assert_eq!(read::<u8>(&written(&Some(Some(7u8)))).unwrap(), 7);
}

#[test]
fn types_that_look_before_they_decide_arrive() {
    for plain in plains() {
        trip(plain.clone());
        let inner = inner(plain);
        trip(inner.clone());
        trip(Flat {
            inner: inner.clone(),
            rest: [("a", None), ("b", Some(vec![1, 2]))]
                .map(|(name, bytes)| (name.to_owned(), bytes))
                .into(),
        });
        trip(Untagged::Inner(inner.clone()));
        trip(vec![Tagged::Inner(inner.clone()), Tagged::Unit]);
        trip(Adjacent::Inner { inner });
    }
    trip(Untagged::Number(255));
    trip(Untagged::Bytes((0..=255).collect()));
    trip(Untagged::Bytes(Vec::new()));
    trip(Untagged::Nothing);
    trip(Tagged::Struct {
        bytes: vec![9; 2000],
        some: Some(()),
    });
    trip(Adjacent::Bytes(vec![1]));
    trip(Adjacent::Unit);
    trip(serde_json::json!({"a": [1, -2.5, null, [true]], "b": {"c": "d", "e": {}}}));
}

#[test]
fn bytes_are_one_run_however_they_come() {
    let bytes: Vec<u8> = (0..2000u32).map(|number| number as u8).collect();
    for len in [0, 1, 15, 16, 511, 512, 513, 1024, 2000] {
        let bytes = &bytes[..len];
        let run = written(bytes);
        assert!(run.len() <= len + 3, "{len} bytes became {}", run.len());
        assert_eq!(run[0], format::RUN);
        trip(bytes.to_vec());
        trip(bytes.iter().copied().collect::<VecDeque<u8>>());
        trip(bytes.iter().copied().collect::<BTreeSet<u8>>());
        trip(Cow::<[u8]>::Owned(bytes.to_vec()));
        // Sequences that were not bytes, and are now; and the other way round.
        let wide: Vec<u64> = bytes.iter().map(|byte| u64::from(*byte)).collect();
        assert_eq!(read::<Vec<u8>>(&written(&wide)).unwrap(), bytes);
        assert_eq!(read::<Vec<u64>>(&run).unwrap(), wide);
    }
    trip([1u8; 32]);
    assert!(read::<[u8; 3]>(&written(&vec![1u8, 2])).is_err());
    assert!(read::<[u8; 3]>(&written(&vec![1u8, 2, 3, 4])).is_err());
    assert!(read::<(u8, u8)>(&written(&(1u8, 2u8, 3u8))).is_err());
}

/// A sequence or map that says another length than it has, or none.
struct Claims(Option<usize>, usize, bool);

impl Serialize for Claims {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.2 {
            let mut map = serializer.serialize_map(self.0)?;
            for number in 0..self.1 {
                map.serialize_entry(&number, "value")?;
            }
            return map.end();
        }
        let mut sequence = serializer.serialize_seq(self.0)?;
        for number in 0..self.1 {
            sequence.serialize_element(&number)?;
        }
        sequence.end()
    }
}

#[test]
fn a_length_that_is_not_known_or_not_true_is_noticed() {
    for len in [0, 1, 100] {
        let numbers: Vec<usize> = (0..len).collect();
        let bytes = written(&Claims(None, len, false));
        assert_eq!(read::<Vec<usize>>(&bytes).unwrap(), numbers);
        assert!(read::<Vec<usize>>(&bytes[..bytes.len() - 1]).is_err());
        let map = read::<BTreeMap<usize, String>>(&written(&Claims(None, len, true)));
        assert_eq!(map.unwrap().len(), len);
        // Among them one that 32 bits would cut to what is there.
        for claim in [len + 1, (1 << 32) + len, usize::MAX] {
            for map in [false, true] {
                let claims = Claims(Some(claim), len, map);
                let result = encode(&claims, &mut Vec::new(), &mut Outgoing::default());
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Encode);
            }
        }
    }
}

#[test]
fn lengths_beyond_four_gib_are_kept_whole() {
    for length in [0, 0x7f, 0x80, 0xffff_ffff, 1 << 32, 5 << 30, usize::MAX] {
        let mut bytes = Vec::new();
        put_length(&mut bytes, length);
        assert_eq!(take_length(&mut &bytes[..]).unwrap(), length);
    }
    assert!(take_length(&mut &[0xff; 20][..]).is_err());
    assert!(
        take_length(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2][..]).is_err()
    );
    assert!(take_length(&mut &[0x80; 3][..]).is_err());
    // More than there is: an error, before any memory is taken for it; and never what is
    // left when the upper half of the length is dropped.
    for first in [
        format::TEXT,
        format::BYTES,
        format::RUN,
        format::SEQ,
        format::MAP,
    ] {
        for claim in [(4 << 30) + 3, usize::MAX] {
            let mut bytes = vec![first];
            put_length(&mut bytes, claim);
            bytes.extend_from_slice(&[1; 3]);
            assert!(read::<String>(&bytes).is_err());
            assert!(read::<Vec<u8>>(&bytes).is_err());
            assert!(read::<Vec<[u64; 4]>>(&bytes).is_err());
            assert!(read::<HashMap<u8, u8>>(&bytes).is_err());
            assert!(read::<IgnoredAny>(&bytes).is_err());
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Chain {
    End,
    New(Box<Chain>),
    Tuple(u8, Box<Chain>),
    Struct { next: Box<Chain> },
    Some(Option<Box<Chain>>),
    Seq(Vec<Chain>),
}

#[test]
fn whatever_can_be_written_can_be_read_however_deep() {
    let links: [fn(Box<Chain>) -> Chain; 5] = [
        Chain::New,
        |next| Chain::Tuple(1, next),
        |next| Chain::Struct { next },
        |next| Chain::Some(Some(next)),
        |next| Chain::Seq(vec![*next]),
    ];
    for link in links {
        let mut deepest = 0;
        for depth in 0..400 {
            let chain = (0..depth).fold(Chain::End, |chain, _| link(Box::new(chain)));
            let mut bytes = Vec::new();
            if encode(&chain, &mut bytes, &mut Outgoing::default()).is_err() {
                continue;
            }
            deepest = depth;
            assert_eq!(read::<Chain>(&bytes).unwrap(), chain);
            assert!(read::<IgnoredAny>(&bytes).is_ok());
        }
        assert!((50..=256).contains(&deepest), "{deepest} deep");
    }
    // From a peer that has no such limit.
    for first in [
        format::SOME,
        format::VARIANT,
        format::SHORT_SEQ | 1,
        format::OPEN_SEQ,
    ] {
        assert!(read::<IgnoredAny>(&vec![first; 1 << 20]).is_err());
        assert!(read::<Chain>(&vec![first; 1 << 20]).is_err());
        assert!(read::<Untagged>(&vec![first; 1 << 20]).is_err());
    }
}

#[test]
fn changed_bytes_end_in_a_value_or_an_error() {
    let flat = Flat {
        inner: inner(Plain::Tuple(-100, None)),
        rest: [("more".to_owned(), Some(vec![1, 2, 3]))].into(),
    };
    let good = written(&(&flat, Tagged::Inner(flat.inner.clone()), "text", 1.5f64));
    for at in 0..good.len() {
        for byte in 0..=255 {
            let mut bad = good.clone();
            bad[at] = byte;
            let _ = read::<(Flat, Tagged, String, f64)>(&bad);
            let _ = read::<serde_json::Value>(&bad);
            let _ = read::<IgnoredAny>(&bad);
        }
    }
    assert!(read::<String>(&[format::SHORT_TEXT | 2, 0xc3, 0x28]).is_err());
    assert!(read::<char>(&[format::CHAR, 0, 0xd8, 0, 0]).is_err());
}

//! What crosses to a child and back: arguments and results of all shapes and sizes,
//! and what happens with those that cannot.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use bunshin::{Buffer, ErrorKind, Process, StartMethod, TaskError};
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::under_each_start_method;
use crate::{guard, start};

fn same<T>(value: T) -> T {
    value
}

/// Sends a value to a child and back, and says what is wrong with what comes.
fn trip<T>(method: StartMethod, value: &T) -> Result<(), String>
where
    T: Serialize + DeserializeOwned + PartialEq + Clone + fmt::Debug + 'static,
{
    let name = std::any::type_name::<T>();
    match start(method, same::<T>, (value.clone(),)).result() {
        Ok(back) if back == *value => Ok(()),
        Ok(back) => Err(format!("{method}: {name}: {value:?} came back as {back:?}")),
        Err(error) => Err(format!("{method}: {name}: {value:?}: {error}")),
    }
}

/// Collects what is wrong with several values.
macro_rules! assert_trips {
    ($method:expr, $($value:expr),+ $(,)?) => {{
        let outcomes = [$(trip($method, &$value)),+];
        let wrong: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }};
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    number: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    absent: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Outer {
    name: String,
    #[serde(flatten)]
    inner: Inner,
    #[serde(flatten)]
    rest: BTreeMap<String, f64>,
    nested: Vec<Option<Box<Inner>>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(i64),
    Text(String),
    Pair { left: u8, right: u8 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Tagged {
    Nothing,
    SomeThing { list: Vec<u16>, inner: Inner },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "content")]
enum Adjacent {
    Unit,
    Tuple(i8, String),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
enum Plain {
    Unit,
    New(u32),
    Tuple(u8, u8),
    Struct { field: char },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(Vec<u8>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct TupleStruct(u8, u8, Plain);

fn outer() -> Outer {
    Outer {
        name: "äußere".into(),
        inner: Inner {
            number: i64::MIN,
            absent: None,
        },
        rest: [
            ("one".to_owned(), 1.0),
            ("tiny".to_owned(), f64::MIN_POSITIVE),
        ]
        .into(),
        nested: vec![
            None,
            Some(Box::new(Inner {
                number: 1,
                absent: Some(String::new()),
            })),
        ],
    }
}

#[test]
fn scalars_and_collections_cross() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        assert_trips!(
            method,
            (),
            true,
            'ß',
            u64::MAX,
            i64::MIN,
            f32::MIN_POSITIVE,
            f64::NEG_INFINITY,
            i128::MIN,
            u128::MAX,
            String::from("日本語\0\u{10ffff}"),
            vec![0u8; 3],
            vec![-1i8, 2],
            [1u8, 2, 3, 4],
            (1u8, 2u8),
            (1u8, 2u16, "x".to_owned()),
            (1u8, (2u8, 3u8), [4u8]),
            vec![(1u8, true), (2, false)],
            Vec::<String>::new(),
            vec![vec![1u32], vec![], vec![2, 3]],
            HashMap::from([((1i32, -1i32), "tuple keys".to_owned())]),
            BTreeMap::from([(Plain::New(1), Plain::Unit)]),
            Some(7u8),
            Option::<u8>::None,
            Ok::<u8, String>(1),
            Err::<u8, String>("no".into()),
            Duration::from_nanos(123_456_789_012),
        );
    });
}

#[test]
fn structs_and_enums_cross() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        assert_trips!(
            method,
            Unit,
            Newtype(vec![1, 2, 3]),
            TupleStruct(1, 2, Plain::Struct { field: 'x' }),
            vec![Plain::Unit, Plain::New(7), Plain::Tuple(1, 2)],
            outer(),
            vec![Some(outer()), None],
            vec![
                Untagged::Number(-1),
                Untagged::Text("text".into()),
                Untagged::Pair { left: 1, right: 2 }
            ],
            Tagged::Nothing,
            Tagged::SomeThing {
                list: vec![1, 500],
                inner: outer().inner
            },
            vec![Adjacent::Unit, Adjacent::Tuple(-1, "x".into())],
            serde_json::json!({"a": [1, -2.5, null, true], "b": {"c": "d"}}),
        );
    });
}

#[test]
fn an_option_of_something_that_looks_like_nothing_crosses() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        assert_trips!(
            method,
            Some(()),
            Option::<()>::None,
            Some(Option::<u8>::None),
            Some(Some(1u8)),
            Option::<Option<u8>>::None,
            vec![Some(Unit), None],
        );
    });
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum UntaggedBytes {
    Number(i64),
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum TaggedBytes {
    Bytes {
        bytes: Vec<u8>,
        pair: (u8, u8),
        array: [u8; 3],
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FlatBytes {
    #[serde(flatten)]
    inner: Bytes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Bytes {
    bytes: Vec<u8>,
}

#[test]
fn bytes_inside_untagged_and_flattened_types_cross() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        assert_trips!(
            method,
            UntaggedBytes::Number(1),
            UntaggedBytes::Bytes(vec![1, 2, 3]),
            TaggedBytes::Bytes {
                bytes: vec![0, 255],
                pair: (1, 2),
                array: [1, 2, 3]
            },
            FlatBytes {
                inner: Bytes {
                    bytes: vec![9; 100]
                }
            },
        );
    });
}

#[test]
fn none_to_eight_arguments_cross() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        type S = String;
        let s = |n: u32| n.to_string();
        assert_eq!(start(method, || 0u32, ()).result().unwrap(), 0);
        assert_eq!(start(method, |a: S| a, (s(1),)).result().unwrap(), "1");
        let two = |a: S, b: u8| format!("{a}{b}");
        assert_eq!(start(method, two, (s(1), 2)).result().unwrap(), "12");
        let three = |a: S, b: u8, c: i64| format!("{a}{b}{c}");
        assert_eq!(
            start(method, three, (s(1), 2, -3)).result().unwrap(),
            "12-3"
        );
        let four = |a: S, b: u8, c: i64, d: char| format!("{a}{b}{c}{d}");
        assert_eq!(
            start(method, four, (s(1), 2, 3, '4')).result().unwrap(),
            "1234"
        );
        let five = |a: S, b: u8, c: i64, d: char, e: S| format!("{a}{b}{c}{d}{e}");
        assert_eq!(
            start(method, five, (s(1), 2, 3, '4', s(5)))
                .result()
                .unwrap(),
            "12345"
        );
        let six = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8| vec![a, b, c, d, e, f];
        assert_eq!(
            start(method, six, (1, 2, 3, 4, 5, 6)).result().unwrap(),
            [1, 2, 3, 4, 5, 6]
        );
        let seven = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8| [a, b, c, d, e, f, g];
        let args = (1, 2, 3, 4, 5, 6, 7);
        assert_eq!(
            start(method, seven, args).result().unwrap(),
            [1, 2, 3, 4, 5, 6, 7]
        );
        let eight =
            |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8| [a, b, c, d, e, f, g, h];
        let args = (1, 2, 3, 4, 5, 6, 7, 8);
        assert_eq!(
            start(method, eight, args).result().unwrap(),
            [1, 2, 3, 4, 5, 6, 7, 8]
        );
    });
}

#[test]
fn large_arguments_and_results_cross() {
    let _guard = guard(170);
    under_each_start_method(|method| {
        for len in [32 << 10, (32 << 10) + 1, 1 << 20, 64 << 20] {
            let bytes: Vec<u8> = (0..len).map(|i: usize| (i % 251) as u8).collect();
            let back = start(method, same::<Vec<u8>>, (bytes.clone(),))
                .result()
                .unwrap();
            assert!(back == bytes, "{method}: {len} bytes came back changed");
        }
        let numbers: Buffer<f64> = (0..8 << 20).map(f64::from).collect();
        let halve = |mut numbers: Buffer<f64>| {
            numbers
                .as_mut_slice()
                .iter_mut()
                .for_each(|number| *number /= 2.0);
            numbers
        };
        let back = start(method, halve, (numbers.clone(),)).result().unwrap();
        assert!(
            back.iter()
                .zip(numbers.iter())
                .all(|(half, whole)| half * 2.0 == *whole)
        );
        assert_eq!(back.len(), numbers.len());
    });
}

/// Fails, or panics, when it is serialised or deserialised; as it says.
#[derive(Clone, Debug, PartialEq)]
struct Rude(String);

impl Serialize for Rude {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_str() {
            "fail to encode" => Err(S::Error::custom("rudely refused to encode")),
            "panic at encode" => panic!("rudely panicked at encode"),
            text => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Rude {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "fail to decode" => Err(D::Error::custom("rudely refused to decode")),
            "panic at decode" => panic!("rudely panicked at decode"),
            text => Ok(Self(text.to_owned())),
        }
    }
}

#[test]
fn arguments_that_cannot_cross_are_an_error() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let builder = || Process::builder().start_method(method);
        let refused = builder().start(same::<Rude>, (Rude("fail to encode".into()),));
        let error = refused.expect_err("it cannot be encoded");
        assert_eq!(error.kind(), ErrorKind::Encode, "{error}");
        assert!(error.to_string().contains("rudely refused"), "{error}");
        for (how, words) in [
            ("fail to decode", "rudely refused"),
            ("panic at decode", "rudely pan"),
        ] {
            let child = start(method, same::<Rude>, (Rude(how.into()),));
            match child.result() {
                Err(TaskError::Arguments(error)) => {
                    assert!(error.to_string().contains(words), "{error}");
                }
                other => panic!("{method}: {how}: {other:?}"),
            }
        }
    });
}

#[test]
fn results_that_cannot_cross_are_an_error() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        for (how, words) in [
            ("fail to encode", "rudely refused"),
            ("panic at encode", "rudely pan"),
        ] {
            let child = start(method, |text: String| Rude(text), (how.to_owned(),));
            match child.result() {
                Err(TaskError::Result(error)) => {
                    assert!(error.to_string().contains(words), "{error}");
                }
                other => panic!("{method}: {how}: {other:?}"),
            }
        }
        let child = start(
            method,
            |text: String| Rude(text),
            ("fail to decode".to_owned(),),
        );
        assert!(matches!(child.result(), Err(TaskError::Result(_))));
    });
}

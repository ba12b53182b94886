//! JSON values that are taken if they have the expected shape, and are empty if not.
//!
//! One odd value must not hide a whole list, and what Lictor does not use it does not judge. Nothing
//! is copied that need not be: texts borrow from the buffer.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Visits a value of another shape than the expected one: it counts as empty.
macro_rules! else_empty {
    (boolean) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
    };
    (number) => {
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        else_empty!(fraction);
    };
    (fraction) => {
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
    };
    (text) => {
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
    };
    (null) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
    };
    (list) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Self::Value::default())
        }
    };
    (object) => {
        fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
            while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Self::Value::default())
        }
    };
    ($($shape:ident),+) => { $(else_empty!($shape);)+ };
}

macro_rules! expecting {
    ($what:literal) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str($what)
        }
    };
}

/// A text; empty if it is none.
#[derive(Debug, Default, PartialEq)]
pub struct Str<'a>(pub Cow<'a, str>);

impl Str<'_> {
    /// The text, if there is one.
    pub fn some(&self) -> Option<&str> {
        (!self.0.is_empty()).then_some(&*self.0)
    }
}

impl<'a, 'de: 'a> Deserialize<'de> for Str<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Str<'de>;
            expecting!("a text");
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Owned(text.to_owned())))
            }
            else_empty!(boolean, number, null, list, object);
        }
        from.deserialize_any(Shape)
    }
}

/// A boolean; nothing if it is none.
#[derive(Debug, Default, PartialEq)]
pub struct Flag(pub Option<bool>);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Flag;
            expecting!("a boolean");
            fn visit_bool<E>(self, flag: bool) -> Result<Flag, E> {
                Ok(Flag(Some(flag)))
            }
            else_empty!(number, text, null, list, object);
        }
        from.deserialize_any(Shape)
    }
}

/// A whole number; 0 if it is none.
#[derive(Debug, Default, PartialEq)]
pub struct Int(pub i64);

impl Int {
    /// The number as a port, if it is one.
    pub fn port(&self) -> Option<u16> {
        u16::try_from(self.0).ok().filter(|port| *port != 0)
    }
}

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Int;
            expecting!("a whole number");
            fn visit_i64<E>(self, number: i64) -> Result<Int, E> {
                Ok(Int(number))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Int, E> {
                Ok(Int(i64::try_from(number).unwrap_or_default()))
            }
            else_empty!(boolean, fraction, text, null, list, object);
        }
        from.deserialize_any(Shape)
    }
}

/// An object; its default if it is none.
#[derive(Debug, Default, PartialEq)]
pub struct Obj<T>(pub T);

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Obj<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Shape<T> {
            type Value = Obj<T>;
            expecting!("an object");
            fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Obj<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(object)).map(Obj)
            }
            else_empty!(boolean, number, text, null, list);
        }
        from.deserialize_any(Shape(PhantomData))
    }
}

/// A list; empty if it is none.
#[derive(Debug, PartialEq)]
pub struct Seq<T>(pub Vec<T>);

impl<T> Default for Seq<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Seq<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Shape<T> {
            type Value = Seq<T>;
            expecting!("a list");
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Seq<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Seq(items))
            }
            else_empty!(boolean, number, text, null, object);
        }
        from.deserialize_any(Shape(PhantomData))
    }
}

/// An object whose values are texts; empty if it is none, and without the values that are none.
#[derive(Debug, Default, PartialEq)]
pub struct Map<'a>(pub Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a, 'de: 'a> Deserialize<'de> for Map<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Map<'de>;
            expecting!("an object");
            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Map<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Str(key), value)) =
                    object.next_entry::<Str<'de>, MaybeStr<'de>>()?
                {
                    if let Some(value) = value.0 {
                        pairs.push((key, value));
                    }
                }
                Ok(Map(pairs))
            }
            else_empty!(boolean, number, text, null, list);
        }
        from.deserialize_any(Shape)
    }
}

/// A text, which may be empty; nothing if it is none.
#[derive(Default)]
struct MaybeStr<'a>(Option<Cow<'a, str>>);

impl<'a, 'de: 'a> Deserialize<'de> for MaybeStr<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = MaybeStr<'de>;
            expecting!("a text");
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<MaybeStr<'de>, E> {
                Ok(MaybeStr(Some(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<MaybeStr<'de>, E> {
                Ok(MaybeStr(Some(Cow::Owned(text.to_owned()))))
            }
            else_empty!(boolean, number, null, list, object);
        }
        from.deserialize_any(Shape)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct All<'a> {
        #[serde(borrow)]
        text: Str<'a>,
        flag: Flag,
        int: Int,
        obj: Obj<Inner>,
        seq: Seq<Int>,
        #[serde(borrow)]
        map: Map<'a>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Inner {
        int: Int,
    }

    #[test]
    fn the_expected_shape_is_taken() {
        let json = r#"{"text": "a\u00e9", "flag": true, "int": -3, "obj": {"int": 1, "x": []},
                       "seq": [1, "2", 3], "map": {"a": "b", "c": 1, "d": ""}, "more": {"x": [1]}}"#;
        let all: All = serde_json::from_str(json).unwrap();
        assert_eq!(all.text.some(), Some("aé"));
        assert_eq!(all.flag.0, Some(true));
        assert_eq!(all.int.0, -3);
        assert_eq!(all.obj.0.int.0, 1);
        assert_eq!(all.seq.0, [Int(1), Int(0), Int(3)]);
        assert_eq!(
            all.map.0,
            [("a".into(), "b".into()), ("d".into(), "".into())]
        );
    }

    #[test]
    fn any_other_shape_is_empty() {
        let odd = [
            "null",
            "true",
            "1",
            "-1",
            "1.5",
            "\"x\"",
            "[1, {\"a\": []}]",
            "{\"a\": {\"b\": 1}}",
        ];
        let expected = |field: &str, value: &str| match field {
            "text" => value.starts_with('"'),
            "flag" => value == "true",
            "int" => value == "1" || value == "-1",
            "seq" => value.starts_with('['),
            _ => value.starts_with('{'),
        };
        for field in ["text", "flag", "int", "obj", "seq", "map"] {
            for value in odd.iter().filter(|value| !expected(field, value)) {
                let json = format!(r#"{{"{field}": {value}}}"#);
                let all: All = serde_json::from_str(&json).unwrap();
                assert_eq!(all, All::default(), "{json}");
            }
        }
    }

    #[test]
    fn texts_without_escapes_are_not_copied() {
        let all: All = serde_json::from_str(r#"{"text": "plain"}"#).unwrap();
        assert!(matches!(all.text.0, Cow::Borrowed("plain")));
    }

    #[test]
    fn ports_are_1_to_65535() {
        assert_eq!(Int(80).port(), Some(80));
        assert_eq!(
            [Int(0), Int(-1), Int(65536)].map(|int| int.port()),
            [None; 3]
        );
    }
}

//! How a table of the file is read: every key may be missing, an unknown one is an error.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A table of the file. A macro, because the attributes of each must be the same.
macro_rules! table {
    ($name:ident { $($(#[$attribute:meta])* $key:ident: $type:ty,)* }) => {
        #[derive(Debug, Default, serde::Deserialize)]
        #[cfg_attr(test, derive(serde::Serialize))]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $($(#[$attribute])* pub(super) $key: $type,)*
        }
    };
}

/// `[table]`, or `[[table]]` as often as there is need.
#[derive(Debug)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct OneOrMore<T>(pub(super) Vec<T>);

/// `"path"`, or `["path", …]`.
#[derive(Debug)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct OnePathOrMore(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OnePathOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Paths;

        impl<'de> Visitor<'de> for Paths {
            type Value = OnePathOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a list of paths")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Self::Value, E> {
                Ok(OnePathOrMore(vec![path.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, paths: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(paths)).map(OnePathOrMore)
            }
        }

        deserializer.deserialize_any(Paths)
    }
}

// Not `untagged`, which would hide which key is at fault.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tables<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Tables<T> {
            type Value = OneOrMore<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table or several")
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(table)).map(|one| OneOrMore(vec![one]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, tables: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(tables)).map(OneOrMore)
            }
        }

        deserializer.deserialize_any(Tables(PhantomData))
    }
}

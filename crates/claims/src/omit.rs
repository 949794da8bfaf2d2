//! The Go library's rule for what is written: what is zero is left out, and what is left out is zero.

use serde::de::value::StringDeserializer;
use serde::de::{DeserializeOwned, Error, IntoDeserializer};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::once::Once;

pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `Some` of zero is written by nobody: a reader would take it for nothing.
pub(crate) fn is_none_or_zero<T: Default + PartialEq>(value: &Option<T>) -> bool {
    value.as_ref().is_none_or(is_zero)
}

/// The other way round, so that claims are the same after they were written and read again.
pub(crate) fn zero_is_none<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default + PartialEq>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|value| !is_zero(value)))
}

/// A list that may be `null`, which the library writes for a mapping to nowhere.
pub(crate) fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// One of several words, where no word at all is the empty one to Go.
pub(crate) fn empty_is_none<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let word = Option::<String>::deserialize(deserializer)?.filter(|word| !word.is_empty());
    let read = |word: String| -> Result<T, D::Error> {
        let word: StringDeserializer<D::Error> = word.into_deserializer();
        T::deserialize(word)
    };
    word.map(read).transpose()
}

/// Members that we do not know. Servers read names without regard to case, so that `EXP` would be one that they know.
pub(crate) fn unknown_members<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    let members = Map::deserialize(deserializer)?;
    // The long s is a small letter, and still an s to Go.
    let has_other_letters = |name: &str| name.chars().any(|letter| letter.is_uppercase() || letter == 'ſ');
    match members.keys().find(|name| has_other_letters(name)) {
        None => Ok(members),
        Some(name) => Err(D::Error::custom(format!("member {name:?} has capital letters: write it in small ones"))),
    }
}

/// Reads JSON in which `null` stands for a member that is not there, as the library does.
pub(crate) fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    let error = match serde_json::from_slice(json) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let Once(mut value) = serde_json::from_slice(json)?;
    drop_nulls(&mut value);
    serde_json::from_value(value).map_err(|_| error)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

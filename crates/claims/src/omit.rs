//! The Go library's rule for what is written: what is zero is left out, and what is left out is zero.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `Some` of zero is written by nobody: a reader would take it for nothing.
pub(crate) fn is_none_or_zero<T: Default + PartialEq>(value: &Option<T>) -> bool {
    value.as_ref().is_none_or(is_zero)
}

/// A list that may be `null`, which the library writes for a mapping to nowhere.
pub(crate) fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads JSON in which `null` stands for a member that is not there, as the library does.
pub(crate) fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    let error = match serde_json::from_slice(json) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(json) else { return Err(error) };
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

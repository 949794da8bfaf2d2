//! The inputs of the fuzz targets, and changes to them, for tests of whichever package.

use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// This folder, from whichever package.
fn fuzz_folder() -> PathBuf {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("fuzz"));
    folders.into_iter().find(|folder| folder.is_dir()).expect("the fuzz folder is there")
}

/// Inputs by name, in the same order everywhere.
pub(crate) fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(fuzz_folder().join("seeds").join(target)).expect("seeds are there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a seed is listed").path()).collect();
    paths.sort();
    let read = |path: PathBuf| (path.clone(), fs::read(path).expect("a seed is read"));
    paths.into_iter().map(read).collect()
}

/// What the dictionary of the fuzz targets says, one text a line.
pub(crate) fn words() -> Vec<String> {
    let text = fs::read_to_string(fuzz_folder().join("claims.dict")).expect("the dictionary is there");
    text.lines().map(|line| serde_json::from_str(line).expect("a quoted text")).collect()
}

/// One of the words.
pub(crate) fn any_word<'a>(words: &'a [String], random: &mut Rng) -> &'a str {
    random.choice(words).expect("there are words")
}

/// Changes one value or one name somewhere, so that it is still JSON.
pub(crate) fn mutate_json(value: &mut Value, words: &[String], random: &mut Rng) {
    let goes_on = random.u8(0..6) > 0;
    match value {
        Value::Object(members) if goes_on && !members.is_empty() => {
            let name = random.choice(members.keys()).expect("it has members").clone();
            match random.u8(0..8) {
                0 => drop(members.remove(&name)),
                1 => {
                    let member = members[&name].clone();
                    members.insert(any_word(words, random).trim_matches('"').to_owned(), member);
                }
                _ => mutate_json(&mut members[&name], words, random),
            }
        }
        Value::Array(items) if goes_on && !items.is_empty() => {
            let at = random.usize(0..items.len());
            match random.u8(0..8) {
                0 => items.push(items[at].clone()),
                1 => items.swap(0, at),
                _ => mutate_json(&mut items[at], words, random),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            *value = other_value(value, words, random)
        }
    }
}

fn other_value(old: &Value, words: &[String], random: &mut Rng) -> Value {
    let word = any_word(words, random);
    match random.u8(0..6) {
        0 => Value::Null,
        1 => json!([old]),
        2 => json!(random.i64(..)),
        3 => json!(random.f64()),
        4 => Value::Object(Map::from_iter([(word.to_owned(), old.clone())])),
        _ => serde_json::from_str(word).unwrap_or_else(|_| word.into()),
    }
}

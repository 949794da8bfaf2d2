//! The bodies of the fuzz targets in `fuzz/`, with seeded mutations of the same inputs, so that they run wherever tests do.

#[path = "../../../fuzz/bodies.rs"]
mod bodies;

use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// Counted for each of the inputs in `fuzz/seeds`.
const MUTATIONS: usize = 100;

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Inputs by name, in the same order everywhere.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(fuzz_folder().join("seeds").join(target)).expect("seeds are there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// What the dictionary of the fuzz targets says, one text a line.
fn words() -> Vec<String> {
    let text = fs::read_to_string(fuzz_folder().join("claims.dict")).expect("the dictionary is there");
    text.lines().map(|line| serde_json::from_str(line).expect("a quoted text")).collect()
}

/// Changes some bytes, as a corrupt file or a blind fuzzer would.
fn mutate_bytes(input: &mut Vec<u8>, words: &[String], random: &mut Rng) {
    for _ in 0..random.usize(1..4) {
        let at = random.usize(0..=input.len());
        let end = (at + random.usize(0..12)).min(input.len());
        match random.u8(0..5) {
            0 => drop(input.drain(at..end)),
            1 => input.truncate(at),
            2 => drop(input.splice(at..end, random.choice(words).unwrap().bytes())),
            3 => {
                let part = input[at..end].to_vec();
                drop(input.splice(at..at, part));
            }
            _ => input[at..end].iter_mut().for_each(|byte| *byte ^= 1 << random.u8(0..8)),
        }
    }
}

/// Changes one value or one name somewhere, so that it is still JSON.
fn mutate_json(value: &mut Value, words: &[String], random: &mut Rng) {
    let goes_on = random.u8(0..6) > 0;
    match value {
        Value::Object(members) if goes_on && !members.is_empty() => {
            let name = random.choice(members.keys()).unwrap().clone();
            match random.u8(0..8) {
                0 => drop(members.remove(&name)),
                1 => {
                    let member = members[&name].clone();
                    members.insert(random.choice(words).unwrap().trim_matches('"').to_owned(), member);
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
        other => *other = other_value(other, words, random),
    }
}

fn other_value(old: &Value, words: &[String], random: &mut Rng) -> Value {
    let word = random.choice(words).unwrap();
    match random.u8(0..6) {
        0 => Value::Null,
        1 => json!([old]),
        2 => json!(random.i64(..)),
        3 => json!(random.f64()),
        4 => Value::Object(Map::from_iter([(word.clone(), old.clone())])),
        _ => serde_json::from_str(word).unwrap_or_else(|_| word.clone().into()),
    }
}

#[test]
fn any_bytes_in_place_of_a_token_do_no_harm() {
    let mut random = Rng::with_seed(1);
    let words = words();
    for (_, seed) in seeds("read_text").into_iter().chain(seeds("sign_again")) {
        bodies::read_text(&seed);
        for _ in 0..MUTATIONS {
            let mut input = seed.clone();
            mutate_bytes(&mut input, &words, &mut random);
            bodies::read_text(&input);
        }
    }
}

#[test]
fn what_is_read_is_the_same_after_it_was_signed_again() {
    let mut random = Rng::with_seed(2);
    let words = words();
    let (mut read, mut refused) = (0, 0);
    for (path, seed) in seeds("sign_again") {
        assert!(bodies::sign_again(&seed), "{} is not read as it is", path.display());
        let (issuer, members) = (seed[0], &seed[1..]);
        let body: Value = serde_json::from_slice(&[b"{", members].concat()).expect("a seed is JSON");
        for turn in 0..MUTATIONS {
            let mut input = seed.clone();
            if turn % 3 == 0 {
                mutate_bytes(&mut input, &words, &mut random);
            } else {
                let mut body = body.clone();
                (0..random.usize(1..4)).for_each(|_| mutate_json(&mut body, &words, &mut random));
                input = [&[issuer], &body.to_string().as_bytes()[1..]].concat();
            }
            let count = if bodies::sign_again(&input) { &mut read } else { &mut refused };
            *count += 1;
        }
    }
    // The control: enough of both, or the mutations are too tame or too wild.
    assert!(read > 100 && refused > 100, "{read} were read, {refused} refused");
}

//! The bodies of the fuzz targets in `fuzz/`, with seeded mutations of the same inputs, so that they run wherever tests do.

#[path = "../../../fuzz/bodies.rs"]
mod bodies;
#[path = "../../../fuzz/mutations.rs"]
mod mutations;

use fastrand::Rng;
use mutations::{any_word, mutate_json, seeds, words};
use serde_json::Value;

/// Of each of the inputs in `fuzz/seeds`.
const MUTATIONS: usize = 100;

/// Changes some bytes, as a corrupt file or a blind fuzzer would.
fn mutate_bytes(input: &mut Vec<u8>, words: &[String], random: &mut Rng) {
    for _ in 0..random.usize(1..4) {
        let at = random.usize(0..=input.len());
        let end = (at + random.usize(0..12)).min(input.len());
        match random.u8(0..5) {
            0 => drop(input.drain(at..end)),
            1 => input.truncate(at),
            2 => drop(input.splice(at..end, any_word(words, random).bytes())),
            3 => {
                let part = input[at..end].to_vec();
                drop(input.splice(at..at, part));
            }
            _ => input[at..end].iter_mut().for_each(|byte| *byte ^= 1 << random.u8(0..8)),
        }
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

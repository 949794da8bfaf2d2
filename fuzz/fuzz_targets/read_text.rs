//! Any bytes in place of a token.

#![no_main]

#[path = "../bodies.rs"]
#[expect(dead_code, reason = "each target uses one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|input: &[u8]| bodies::read_text(input));

//! Any bytes in place of the members of a token that is truly signed.

#![no_main]

#[path = "../bodies.rs"]
#[expect(dead_code, reason = "each target uses one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    bodies::sign_again(input);
});

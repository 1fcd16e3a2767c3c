//! The showing of keys.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bunshin::fuzzing::auth(bytes));

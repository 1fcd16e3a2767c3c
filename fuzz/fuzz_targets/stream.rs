//! The framing of connections to other programs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bunshin::fuzzing::stream(bytes));

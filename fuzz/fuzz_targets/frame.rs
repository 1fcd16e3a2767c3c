//! The frames in a pipe's ring.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bunshin::fuzzing::frame(bytes));

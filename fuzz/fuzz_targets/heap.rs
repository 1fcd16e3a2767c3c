//! A shared heap whose table anybody writes to.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bunshin::fuzzing::heap(bytes));

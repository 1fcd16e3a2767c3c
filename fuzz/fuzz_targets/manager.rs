//! A manager's messages, and the objects behind them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bunshin::fuzzing::manager(bytes));

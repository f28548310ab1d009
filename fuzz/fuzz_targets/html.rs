//! A page of any encoding through the extractor, in every mode.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| intern_fuzz::page(bytes, None));

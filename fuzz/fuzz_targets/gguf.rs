//! A whole GGUF file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = intern_format::gguf::check_bytes(bytes);
});

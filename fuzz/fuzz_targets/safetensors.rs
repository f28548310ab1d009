//! A safetensors file and, from the same bytes, a checkpoint index.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = intern_format::safetensors::check_bytes(bytes);
    let _ = intern_format::checkpoint::check_index(bytes);
});

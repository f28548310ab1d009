//! The `.idx` file of a token shard.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = intern_format::shards::check_index(bytes);
});

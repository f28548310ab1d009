//! A picture, and a shard of them, as `intern data images` looks at them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let rules = intern_data::images::ImageRules { max_side: 4096, ..Default::default() };
    let _ = intern_data::images::look(bytes, &rules);
    intern_fuzz::shard(bytes);
});

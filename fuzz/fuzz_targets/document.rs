//! Files of documents: the first byte says of which kind.
#![no_main]

use intern_data::extract::Format;
use intern_data::source::epub;
use intern_fuzz::items;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 7 {
        0 => drop(items("jsonl", "a.jsonl", bytes)),
        1 => drop(items("jsonl", "a.jsonl.gz", bytes)),
        2 => drop(items("jsonl", "a.jsonl.zst", bytes)),
        3 => drop(items("parquet", "a.parquet", bytes)),
        4 => drop(items("csv", "a.csv", bytes)),
        5 => drop(items("csv", "a.tsv", bytes)),
        _ => drop(epub::read(bytes, Format::Markdown, 1 << 16)),
    }
});

//! A web archive, plain or compressed, read to its end; and the pages in it.
#![no_main]

use intern_data::source::{Body, Item, warc};
use intern_fuzz::{items, page};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(mut reader) = warc::Reader::new(bytes, 1 << 16) {
        while reader.next().is_some() {}
    }
    for item in items("warc", "a.warc", bytes) {
        if let Item::Page(raw) = item
            && let Body::Bytes { bytes, charset, .. } = raw.body
        {
            page(&bytes, charset.as_deref());
        }
    }
});

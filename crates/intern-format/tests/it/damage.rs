//! Broken files: arbitrary bytes, valid files cut or changed anywhere. No reader panics,
//! none allocates more than a small multiple of the file, and messages keep their place.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Debug;

use intern_format::{checkpoint, document, gguf, safetensors, shards};
use proptest::prelude::*;

use crate::golden;

/// Counts the bytes this thread holds, to bound what a reader takes.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // `try_with`: the allocator also runs while a thread's locals are torn down.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only
// plain thread-local cells and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a reader on bytes and checks what it held at most against the input's size.
#[track_caller]
fn bounded<T: Debug>(bytes: &[u8], read: impl FnOnce(&[u8]) -> intern_format::Result<T>) {
    let before = HELD.get();
    PEAK.set(before);
    let result = read(bytes);
    let peak = PEAK.get() - before;
    // Parsed JSON and small strings cost more than their text, by a constant factor.
    let allowed = 16 * bytes.len() as isize + (4 << 10);
    assert!(peak <= allowed, "held {peak} bytes for a file of {}: {result:?}", bytes.len());
    if let Err(error) = result {
        assert!(
            error.to_string().contains("expected") || error.to_string().contains("not supported"),
            "{error}"
        );
    }
}

fn all(bytes: &[u8]) {
    bounded(bytes, safetensors::check_bytes);
    bounded(bytes, checkpoint::check_index);
    bounded(bytes, shards::check_index);
    bounded(bytes, gguf::check_bytes);
}

/// One change to a file.
#[derive(Clone, Debug)]
enum Edit {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    /// Overwrites up to 8 bytes: counts and offsets at their extremes.
    Word(prop::sample::Index, u64),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    /// Repeats a part of the file.
    Double(prop::sample::Index, prop::sample::Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>;
    let extreme = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX - 1),
        Just(1 << 63),
        Just(i64::MAX as u64),
        Just(u64::from(u32::MAX)),
        (0u64..4096),
        (0u32..64).prop_map(|b| 1u64 << b),
        any::<u64>(),
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(i, b)| Edit::Set(i, b)),
        (at(), 0u8..8).prop_map(|(i, b)| Edit::Flip(i, b)),
        (at(), extreme).prop_map(|(i, w)| Edit::Word(i, w)),
        at().prop_map(Edit::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(i, v)| Edit::Insert(i, v)),
        (at(), at()).prop_map(|(i, j)| Edit::Double(i, j)),
    ]
}

fn apply(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        if bytes.is_empty() {
            break;
        }
        let n = bytes.len();
        match edit {
            Edit::Set(i, b) => bytes[i.index(n)] = *b,
            Edit::Flip(i, bit) => bytes[i.index(n)] ^= 1 << bit,
            Edit::Word(i, word) => {
                let i = i.index(n);
                let end = (i + 8).min(n);
                bytes[i..end].copy_from_slice(&word.to_le_bytes()[..end - i]);
            }
            Edit::Cut(i) => bytes.truncate(i.index(n)),
            Edit::Insert(i, new) => drop(bytes.splice(i.index(n)..i.index(n), new.iter().copied())),
            Edit::Double(i, j) => {
                let (i, j) = (i.index(n).min(j.index(n)), i.index(n).max(j.index(n)));
                let part = bytes[i..j].to_vec();
                drop(bytes.splice(j..j, part));
            }
        }
    }
    bytes
}

fn valid(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        all(&bytes);
        all(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        all(&[b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x08", &bytes[..]].concat());
        let length = (bytes.len() as u64).to_le_bytes();
        all(&[&length, &b"{"[..], &bytes[..]].concat());
    }

    #[test]
    fn changed_safetensors(edits in prop::collection::vec(edit(), 1..6)) {
        all(&apply(valid("types.safetensors"), &edits));
    }

    #[test]
    fn changed_index(edits in prop::collection::vec(edit(), 1..6)) {
        all(&apply(valid("checkpoint-sharded/model.safetensors.index.json"), &edits));
    }

    #[test]
    fn changed_gguf(edits in prop::collection::vec(edit(), 1..6)) {
        all(&apply(valid("types.gguf"), &edits));
    }

    #[test]
    fn changed_shard_index(edits in prop::collection::vec(edit(), 1..6)) {
        all(&apply(valid("shard-uint16.idx"), &edits));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The Parquet crate reads these, and answers about one damaged file in two thousand with a
    /// panic, which we turn into an error.
    #[test]
    fn changed_parquet(edits in prop::collection::vec(edit(), 1..4), codec in 0usize..4) {
        let codec = ["snappy", "zstd", "gzip", "none"][codec];
        let bytes = apply(valid(&format!("documents-{codec}.parquet")), &edits);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        std::fs::write(&path, bytes).unwrap();
        let before = HELD.get();
        PEAK.set(before);
        if let Ok(documents) = document::open(&path) {
            let _ = documents.take(1000).collect::<Result<Vec<_>, _>>();
        }
        prop_assert!(PEAK.get() - before < 4 << 20, "held {} bytes", PEAK.get() - before);
    }
}

#[test]
fn every_cut_of_every_file_is_an_error() {
    type Check = fn(&[u8]) -> bool;
    let checks: [(&str, Check); 4] = [
        ("types.safetensors", |b| safetensors::check_bytes(b).is_err()),
        ("types.gguf", |b| gguf::check_bytes(b).is_err()),
        ("shard-uint16.idx", |b| shards::check_index(b).is_err()),
        ("checkpoint-sharded/model.safetensors.index.json", |b| checkpoint::check_index(b).is_err()),
    ];
    for (name, fails) in checks {
        let bytes = valid(name);
        assert!(!fails(&bytes), "{name}");
        // Padding after the last tensor may go; pretty JSON ends in a newline.
        let needed = match name {
            "types.gguf" => bytes.len() - 12,
            _ => bytes.trim_ascii_end().len().min(bytes.len()),
        };
        for cut in 0..needed {
            assert!(fails(&bytes[..cut]), "{name} cut at {cut}");
        }
    }
}

#[test]
fn messages_name_the_place() {
    #[track_caller]
    fn check<T: Debug>(result: intern_format::Result<T>, expect: &str) {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(expect), "{text}");
    }
    // Safetensors.
    let st = |header: &str, data: usize| {
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat();
        safetensors::check_bytes(&bytes)
    };
    check(
        safetensors::check_bytes(b"abc"),
        "byte 0: expected an 8-byte header length, found a file of 3 bytes",
    );
    check(safetensors::check_bytes(b"<!DOCTYPE html>"), "byte 0: expected a header length of at most 7");
    check(st("[]", 0), "byte 8: expected a JSON header that starts with `{`, found byte 0x5b");
    check(st("{\"a\":}", 0), "line 1, column 6: expected valid JSON");
    let one = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}"#;
    check(
        st(&format!("{one}}}"), 1),
        "tensor `a`: expected data_offsets in order and within the 1 bytes of data, found [0, 2]\nhint:",
    );
    check(st(&format!("{one}}}"), 3), "expected the end of the file, found 1 bytes that belong to no tensor");
    check(st(&format!("{one},{}}}", &one[1..]), 2), "tensor `a`: expected each name once, found it twice");
    check(
        st(&format!("{one},\"b\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}}}"), 2),
        "tensor `b`: expected data that starts at 2",
    );
    check(
        st(r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}"#, 2),
        "expected the bytes of shape [3] in U8, found 2 bytes",
    );
    check(
        st(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2),
        "dtype `F4` of tensor `a` is not supported",
    );
    check(
        st(r#"{"a":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
        "expected the bytes of shape",
    );

    // GGUF.
    let gguf = |change: fn(&mut Vec<u8>)| {
        let mut bytes = valid("types.gguf");
        change(&mut bytes);
        gguf::check_bytes(&bytes)
    };
    check(gguf::check_bytes(b"ggml...."), "byte 0: expected the magic GGUF, found \"ggml\"\nhint:");
    check(gguf(|b| b[4] = 1), "GGUF version 1 is not supported");
    check(gguf(|b| b[4..8].copy_from_slice(&3u32.to_be_bytes())), "a big-endian GGUF file is not supported");
    check(gguf(|b| b[4] = 9), "byte 4: expected version 2 or 3, found 9");
    check(gguf(|b| b[15] = 0xff), "byte 8: expected the tensor count that the remaining");
    check(gguf(|b| b.truncate(500)), "before the end of the file\nhint:");
    check(gguf(|b| b.truncate(b.len() - 64)), "tensor `q8_0`: expected data within the file's");

    // Shards.
    let idx = |change: fn(&mut Vec<u8>)| {
        let mut bytes = valid("shard-uint16.idx");
        change(&mut bytes);
        shards::check_index(&bytes)
    };
    check(
        shards::check_index(b"MMIDIDX"),
        "byte 0: expected the magic MMIDIDX and a 34-byte header, found 7 bytes",
    );
    check(idx(|b| b[9] = 2), "byte 9: expected version 1, found version 2");
    check(idx(|b| b[17] = 7), "token type a float (code 7) is not supported");
    check(idx(|b| b[17] = 0), "byte 17: expected a type code from 1 to 8, found 0");
    check(idx(|b| b[18] = 9), "bytes for 9 sequences and 4 document boundaries, found 114 bytes");
    check(idx(|b| b[37] = 0x80), "byte 34: expected a sequence length of 0 or more");
    check(
        idx(|b| b[34] = 2),
        "byte 58: expected offset 4 for sequence 1, where the one before ends, found 6",
    );
    check(idx(|b| b[90] = 9), "byte 90: expected a document boundary from 0 to 4, found 9");
    check(idx(|b| b[106] = 3), "byte 106: expected a document boundary from 4 to 4, found 3");
    check(idx(|b| b.extend([0; 4])), "multimodal");
}

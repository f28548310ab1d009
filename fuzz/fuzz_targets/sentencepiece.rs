//! A SentencePiece `.model` file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = intern_tokenizer::sentencepiece::Model::parse(bytes);
});

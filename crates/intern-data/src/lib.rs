//! Raw input → documents → token shards.
//!
//! `pipeline` is the map: `source` reads raw pages, `extract` finds their text, `stage`
//! judges each document, `dedup` compares them all, and `report` shows what became of
//! them. `tokenizer` and `tokenize` turn documents into what training reads, `synth`
//! makes lessons with known answers, `show` prints documents for people.
//!
//! Results depend on input and configuration only, never on threads, time or machine.

mod corpus;
pub mod dedup;
pub mod extract;
pub mod gold;
mod hash;
pub mod pipeline;
pub mod report;
pub mod show;
pub mod source;
pub mod stage;
pub mod synth;
pub mod tokenize;
pub mod tokenizer;
pub mod verdicts;
pub mod words;

pub use source::rustc_docs;

//! Raw input → documents → token shards.
//!
//! `pipeline` is the map: `source` reads raw pages, `extract` finds their text, `stage`
//! judges each document, `dedup` compares them all, and `report` shows what became of
//! them. `tokenizer` and `tokenize` turn documents into what training reads, `synth`
//! makes lessons with known answers, `show` prints documents for people.
//!
//! Results depend on input and configuration only, never on threads, time or machine.

pub mod bert;
pub mod classifier;
mod corpus;
pub mod dedup;
mod dense;
pub mod diff;
pub mod extract;
pub mod gap;
pub mod gold;
mod hash;
pub mod images;
mod job;
pub mod language;
pub mod mix;
pub mod ngram_model;
pub mod pii;
pub mod pipeline;
pub mod report;
pub mod seek;
pub mod show;
pub mod signatures;
pub mod source;
pub mod stage;
pub mod synth;
mod terms;
pub mod tokenize;
pub mod tokenizer;
pub mod verdicts;
pub mod video;
pub mod why;
pub mod words;

pub use source::rustc_docs;

//! Every byte on disk: one module per format, readers that trust nothing, atomic writers.

pub mod conversation;

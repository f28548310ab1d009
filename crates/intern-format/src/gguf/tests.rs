//! Round trips, damage, and files written by gguf-py.

//! The integration tests live in `all/`.

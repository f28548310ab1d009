//! Every shape, by example and on the asset files.

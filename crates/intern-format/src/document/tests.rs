//! Shapes, round trips, damage.

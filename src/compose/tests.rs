//! Whole projects, and what becomes of them.

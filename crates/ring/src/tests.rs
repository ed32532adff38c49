//! Tests of the crate as a whole: vectors of an independent implementation, golden scripts, laws.

mod laws;
mod scripts;
mod vectors;

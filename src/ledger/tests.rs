//! Tests of the stores in memory.

//! Hostile events and rules.

//! The ledger in Redis: see the stores.

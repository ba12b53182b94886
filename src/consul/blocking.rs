//! Blocking queries: a read that returns when something changed.

//! What to do about the difference. Pure.

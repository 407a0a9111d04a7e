//! Trees that are hard to back up, and a witness that compares two of them.

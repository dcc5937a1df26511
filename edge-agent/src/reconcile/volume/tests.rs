//! Volumes, decided.

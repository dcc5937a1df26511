//! Volumes on a real file system.

//! The Kubernetes REST front (discovery, OpenAPI, tables, watch, patch, negotiation) over a [`Backend`].
//!
//! Owns HTTP and the protocol; refuses storage and policy: those are the backend's. Start reading at [`backend`].
#![forbid(unsafe_code)]

pub mod backend;

pub use backend::Backend;

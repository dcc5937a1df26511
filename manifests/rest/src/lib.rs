//! The Kubernetes REST front (discovery, OpenAPI, tables, watch, patch, negotiation) over a [`Backend`].
//!
//! Owns HTTP and the protocol; refuses storage and policy: those are the backend's. Start reading at [`backend`], then
//! [`front`] (what a request does) and [`server`] (how it arrives).
#![forbid(unsafe_code)]

pub mod authorize;
pub mod backend;
pub mod front;
pub mod server;

pub use authorize::{Attributes, Authorize, Decision};
pub use backend::Backend;
pub use front::{Clock, Front, Limits};

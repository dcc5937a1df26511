//! The Kubernetes REST front (discovery, OpenAPI, tables, watch, patch, negotiation) over a [`Backend`].
//!
//! Owns HTTP and the protocol; refuses storage and policy: those are the backend's. Start reading at [`backend`], then
//! [`front`] (what a request does) and [`server`] (how it arrives). Pure: [`route`], [`query`], [`negotiate`], [`discovery`],
//! [`openapi`], [`page`], [`table`], [`watch`].
#![forbid(unsafe_code)]

pub mod authorize;
pub mod backend;
pub mod discovery;
pub mod front;
pub mod kubeconfig;
pub mod negotiate;
pub mod openapi;
pub mod page;
pub mod query;
mod reply;
mod review;
pub mod route;
pub mod server;
pub mod table;
pub mod watch;

pub use authorize::{Attributes, Authorize, Decision};
pub use backend::Backend;
pub use front::{Clock, Front, Limits};
pub use reply::Body;

/// The Kubernetes version whose API is spoken.
pub(crate) const SERVER_VERSION: &str = "v1.33.0+flotilla";

//! The hands of Flotilla: a device's own copy of what it should run, and what makes that true, with or without a hub.
//!
//! Start reading at [`reconcile`] (what to do, pure), then [`runtime`] (how it is done).

pub mod executor;
pub mod host;
pub mod logs;
pub mod probe;
pub mod reconcile;
pub mod runtime;
pub mod shim;

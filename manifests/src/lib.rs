//! What users may say to Flotilla: kinds, schema, defaults, validation, patches, admission.
//!
//! Owns the language of manifests and every pure decision about one object. Refuses I/O, clocks, randomness and threads:
//! `now`, uids and name suffixes are arguments. Start reading at [`object`] and [`kind`], then [`admission`].
#![forbid(unsafe_code)]

pub mod admission;
pub mod api_error;
pub mod apply;
pub mod condition;
pub mod decode;
pub mod defaults;
pub mod derive;
pub mod digest;
pub mod int_or_string;
pub mod kind;
pub mod label;
pub mod object;
pub mod overrides;
pub mod patch;
pub mod quantity;
pub mod rollout;
pub mod scale;
pub mod schema;
pub mod time;
pub mod validate;
pub mod workload;

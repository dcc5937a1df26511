//! Liveness, readiness and startup probes of running containers.
//!
//! Owns when a probe is due, what its successes and failures amount to ([`machine`], pure) and running it ([`runner`]). Refuses
//! consequences: that a container must be killed is said in a [`ProbeStatus`](crate::reconcile::ProbeStatus) and decided by the plan.

pub mod machine;
pub mod runner;

pub(crate) use runner::{Asked, ask};
pub use runner::{ProbeReport, ProbeRunner};

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

//! Runs probes: one task per container that has any.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::reconcile::{ProbeKey, ProbeStatus, ProbeTarget};
use crate::runtime::Runtime;

/// A container's probes say something new; goes to [`ProbeRunner::record`] and asks for a new plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    pub key: ProbeKey,
    pub status: ProbeStatus,
}

/// The probes that run, and their newest word.
#[derive(Debug)]
pub struct ProbeRunner<R> {
    _runtime: Arc<R>,
    statuses: BTreeMap<ProbeKey, ProbeStatus>,
}

impl<R: Runtime> ProbeRunner<R> {
    /// The receiver belongs in the agent's loop.
    pub fn over(runtime: Arc<R>, host_ip: String) -> (Self, mpsc::Receiver<ProbeReport>) {
        let _ = (runtime, host_ip);
        unimplemented!("bodies follow")
    }

    /// Runs exactly the probes of [`Plan::probes`](crate::reconcile::Plan).
    pub fn keep(&mut self, wanted: &BTreeMap<ProbeKey, ProbeTarget>) {
        let _ = wanted;
        unimplemented!("bodies follow")
    }

    /// Takes a report in; one about probes that no longer run is dropped.
    pub fn record(&mut self, report: ProbeReport) {
        let _ = report;
    }

    /// For [`Observed::probes`](crate::reconcile::Observed).
    pub fn statuses(&self) -> &BTreeMap<ProbeKey, ProbeStatus> {
        &self.statuses
    }
}

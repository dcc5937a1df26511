//! A pod and what its device can do: who may not run here, and whose limits are not what the manifest says.

use super::{Planner, Severity, running};
use crate::reconcile::{Refusal, limits};
use crate::runtime::admission;
use crate::runtime::facilities::{OCI, PROCESS};

impl Planner<'_> {
    /// Why the pod may not run on this device. A runtime that has gone from the device is no reason to end what it started.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let runs = self.sandbox_is_ready() && self.sandbox.is_some_and(|sandbox| running(sandbox).next().is_some());
        let refusal = admission::refusal(self.spec.value, &self.place.facilities);
        refusal.filter(|refusal| refusal.reason != admission::NO_HANDLER || !runs)
    }

    /// Says so, and ends what runs of it by an earlier manifest.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        let waiting = (refusal.reason.clone(), refusal.message.clone());
        for container in &self.spec.containers {
            self.waiting.insert(container.name.to_owned(), waiting.clone());
        }
        self.note(Severity::Warning, &refusal.reason, &refusal.message);
        if self.sandbox.is_some_and(|sandbox| running(sandbox).next().is_some()) {
            self.stop_in_order(self.spec.grace_seconds, &refusal.message);
        }
    }

    /// Whether the sandbox, if there is one, is of the kind the manifest wants.
    pub(super) fn fits(&self) -> bool {
        self.sandbox.is_none_or(|sandbox| sandbox.isolated == self.spec.isolated())
    }

    /// What stands before a container's name in its id: the runtime that makes it.
    pub(in crate::reconcile) fn container_scheme(&self) -> &str {
        match &self.place.facilities.oci {
            Ok(oci) if self.spec.isolated() => &oci.name,
            _ if self.spec.isolated() => OCI,
            _ => PROCESS,
        }
    }

    /// Tells of limits that are not what the manifest says; the pod runs all the same.
    pub(super) fn note_limits(&mut self) {
        for container in self.spec.containers.clone() {
            let wish = limits::resources(container.value, &self.place.facilities);
            for message in wish.clamped {
                self.note(Severity::Warning, "LimitClamped", &message);
            }
            if !wish.unenforced.is_empty() {
                self.unlimited.push(format!("{} of container {}", wish.unenforced.join(" and "), container.name));
            }
        }
    }
}

//! Volumes in a pod's life: made before what needs them starts, kept up to date while it runs, removed when nothing does.

use super::{ContainerSpec, Planner, Severity, failure_wait_of, wake};
use crate::reconcile::Action;
use crate::reconcile::environment::Sources;
use crate::reconcile::volume::{Others, SubPath, Volumes, VolumesStatus, supplemental_groups};
use crate::runtime::{ContainerConfig, ContainerState};

/// A pod's volumes in one plan.
#[derive(Default)]
pub(super) struct PodVolumes<'a> {
    resolved: Option<Volumes<'a>>,
    /// What is asked for by containers that start now.
    sub_paths: Vec<SubPath>,
    /// What keeps every container from starting.
    missing: Option<String>,
    /// Why nothing is tried before some time has passed.
    failed: Option<String>,
}

impl<'a> Planner<'a> {
    fn volumes_status(&self) -> VolumesStatus {
        self.observed.volumes.get(self.uid).cloned().unwrap_or_default()
    }

    pub(super) fn has_volumes(&self) -> bool {
        self.observed.volumes.contains_key(self.uid)
    }

    /// Resolves the pod's volumes and tells what is wrong with them.
    pub(super) fn take_up_volumes(&mut self) {
        let sources = Sources { desired: self.desired, pod: self.pod, place: self.place };
        let volumes = Volumes::of(&sources, &self.spec);
        let status = self.volumes_status();
        for name in volumes.on_disk(&status) {
            let message = format!(
                "volume {name:?} belongs in memory and stands on the disk: this agent may not mount; run it as root to keep it \
                 off the disk"
            );
            self.note(Severity::Warning, "VolumeOnDisk", &message);
        }
        for fault in volumes.outdated(&status) {
            self.note(Severity::Warning, "FailedMount", &format!("{fault}; what it held before is still used"));
        }
        let missing = volumes.missing(&status);
        for fault in &missing {
            self.note(Severity::Warning, "FailedMount", fault);
        }
        if let Some(failure) = self.observed.volume_failures.get(self.uid) {
            self.note(Severity::Warning, "FailedMount", &failure.message);
            if let Some(at) = failure_wait_of(failure, self.place.now) {
                wake(&mut self.wake_at, at);
                self.volumes.failed = Some(failure.message.clone());
            }
        }
        self.volumes.missing = (!missing.is_empty()).then(|| missing.join("; "));
        self.volumes.resolved = Some(volumes);
    }

    /// Gives a container its mounts and groups, and answers what has to be made for the mounts.
    pub(super) fn mounted(
        &self,
        container: &ContainerSpec<'_>,
        mut config: ContainerConfig,
    ) -> Result<(ContainerConfig, Vec<SubPath>), String> {
        config.supplemental_groups = supplemental_groups(self.spec.value);
        let Some(volumes) = &self.volumes.resolved else { return Ok((config, Vec::new())) };
        let directory = self.place.volumes.join(self.uid);
        let (mounts, sub_paths) = volumes.mounts(&directory, container, &config.env)?;
        config.mounts = mounts;
        Ok((config, sub_paths))
    }

    /// Why a container must not start now. What stands from before is good enough while making it anew fails.
    pub(super) fn volumes_hold_back(&self, sub_paths: &[SubPath]) -> Option<String> {
        let volumes = self.volumes.resolved.as_ref()?;
        let stand = volumes.stand(&self.volumes_status()) && !volumes.looks_at_host() && sub_paths.is_empty();
        self.volumes.missing.clone().or_else(|| self.volumes.failed.clone().filter(|_| !stand))
    }

    pub(super) fn ask_for(&mut self, sub_paths: Vec<SubPath>) {
        self.volumes.sub_paths.extend(sub_paths);
    }

    /// Volumes come before everything that starts. Changed content for what runs comes last: if it fails, nothing else does.
    pub(super) fn prepare_volumes(&mut self) {
        let Some(volumes) = self.volumes.resolved.take() else { return };
        if self.history.terminal_phase.is_some() || self.volumes.failed.is_some() {
            return;
        }
        let starts = self.actions.iter().any(|action| matches!(action, Action::StartContainer(_)));
        let live = self.sandbox.is_some_and(|sandbox| {
            sandbox.containers.values().any(|status| matches!(status.state, ContainerState::Running { .. }))
        });
        let others = if live { Others::Keep } else { Others::Remove };
        let sub_paths = std::mem::take(&mut self.volumes.sub_paths);
        let step = volumes.step(&self.volumes_status(), starts, sub_paths, others);
        match step {
            Some(step) if starts => self.actions.insert(0, Action::PrepareVolumes(step)),
            Some(step) if live => self.actions.push(Action::PrepareVolumes(step)),
            _ => {}
        }
    }

    /// Removes the pod's volumes, if there are any, after what was planned before.
    pub(super) fn remove_volumes(&mut self) {
        if self.has_volumes() {
            self.actions.push(Action::RemoveVolumes);
        }
    }
}

//! Hooks: `postStart` after a container's start, `preStop` before its stop.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{ContainerSpec, Planner, environment, image};
use crate::probe::machine::Check;
use crate::reconcile::environment::Sources;
use crate::reconcile::{Action, Hook, HookHandler};
use crate::runtime::ContainerState;

impl Planner<'_> {
    /// Puts hooks to the starts and stops that have been decided. A stop that has begun had its hook; one without grace has none.
    pub(super) fn add_hooks(&mut self) {
        let mut actions = Vec::new();
        for mut action in std::mem::take(&mut self.actions) {
            match &mut action {
                Action::StopContainer { container, grace_ms, hook, .. } if *grace_ms > 0 => {
                    *hook = self.pre_stop(container).map(Box::new);
                    actions.push(action);
                }
                Action::StartContainer(config) => {
                    let around = (config.env.clone(), config.working_dir.clone());
                    let hook = self.hook(&config.name, "postStart", around);
                    let (container, attempt) = (config.name.clone(), config.attempt);
                    actions.push(action);
                    let grace_ms = u64::from(self.spec.grace_seconds) * 1000;
                    actions.extend(hook.map(|hook| Action::RunHook {
                        container,
                        attempt,
                        grace_ms,
                        hook: Box::new(hook),
                    }));
                }
                _ => actions.push(action),
            }
        }
        self.actions = actions;
    }

    fn pre_stop(&self, name: &str) -> Option<Hook> {
        let state = &self.sandbox?.containers.get(name)?.state;
        if !matches!(state, ContainerState::Running { stopping: false, .. }) {
            return None;
        }
        let container = *self.spec.containers.iter().find(|container| container.name == name)?;
        self.hook(name, "preStop", self.surroundings(&container))
    }

    fn hook(&self, name: &str, kind: &str, (env, working_dir): (BTreeMap<String, String>, String)) -> Option<Hook> {
        let container = self.spec.containers.iter().find(|container| container.name == name)?;
        let value = container.value.get("lifecycle")?.get(kind).filter(|value| value.is_object())?;
        let handler = match value.get("sleep").and_then(|sleep| sleep.get("seconds")).and_then(Value::as_u64) {
            Some(seconds) => HookHandler::Sleep { ms: seconds.saturating_mul(1000) },
            None => HookHandler::Ask(Check::of(container.value, value)),
        };
        Some(Hook { handler, host_ip: self.place.host_ip.clone(), env, working_dir })
    }

    /// Environment and working directory of a running container. What cannot be resolved any more does not stop it; its commands see
    /// less.
    pub(super) fn surroundings(&self, container: &ContainerSpec<'_>) -> (BTreeMap<String, String>, String) {
        let sources = Sources { desired: self.desired, pod: self.pod, place: self.place };
        // The image it was started from, which may have lost its name to another since.
        let digest = self.history.containers.get(container.name).map_or("", |known| known.image_digest.as_str());
        let image = self.observed.images.by_digest.get(digest).map(Arc::as_ref);
        let user = image::user(self.spec.value, container.value, image).unwrap_or_default();
        let of_image = image::environment(image, &user);
        let env = environment::resolve(&sources, container, of_image).unwrap_or_default();
        (env, image::working_dir(container, image))
    }
}

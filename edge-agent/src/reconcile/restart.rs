//! Restart counts and back-off: how a container's history grows.

use flotilla_manifests::time::Timestamp;

use super::history::ContainerHistory;
use super::pod::{RestartPolicy, Role};
use crate::runtime::Exit;

/// kubelet's: 10 s, doubling to 300 s.
pub(super) const BACKOFF_MS: u64 = 10_000;
pub(super) const BACKOFF_MS_MAX: u64 = 300_000;
/// A run this long was a good one: the back-off starts anew.
pub(super) const GOOD_RUN_MS: u64 = 600_000;

impl ContainerHistory {
    /// The exit of the newest attempt, if it has ended.
    pub(super) fn ended(&self) -> Option<&Exit> {
        self.last_exit.as_ref().filter(|_| self.attempt.is_some() && self.last_exit_attempt == self.attempt)
    }

    /// The attempt the next start is: one more than the last that ran, the same again when it never came to run.
    pub(super) fn next_attempt(&self) -> u32 {
        match self.attempt {
            None => 0,
            Some(attempt) if self.last_exit_attempt == Some(attempt) => attempt.saturating_add(1),
            Some(attempt) => attempt,
        }
    }

    /// Takes the end of an attempt in.
    pub(super) fn record_exit(&mut self, attempt: u32, exit: Exit) {
        let ran_ms = match (exit.started_at, exit.finished_at) {
            (Some(started), Some(finished)) => finished.0.saturating_sub(started.0),
            _ => 0,
        };
        if ran_ms >= GOOD_RUN_MS {
            self.backoff_ms = 0;
        }
        self.previous_exit = self.last_exit.replace(exit);
        self.last_exit_attempt = Some(attempt);
    }

    /// When the next start is due. The first restart follows at once, as kubelet's does; so does one after an end nobody saw,
    /// one in a new sandbox, and one with a new definition. A clock that was set back waits for nothing.
    pub(super) fn due(&self, digest: &str, sandbox_attempt: u32, now: Timestamp) -> Timestamp {
        let finished = self.ended().and_then(|exit| exit.finished_at);
        match finished {
            Some(finished) if now >= finished && self.sandbox_attempt == sandbox_attempt => {
                let same = !self.replaced && self.digest == digest;
                Timestamp(if same { finished.0.saturating_add(self.backoff_ms) } else { now.0 })
            }
            _ => now,
        }
    }

    /// Takes a start in, before it is carried out.
    pub(super) fn record_start(&mut self, attempt: u32, digest: &str, sandbox_attempt: u32, boot: &str) {
        let seen = self.ended().is_some_and(|exit| exit.finished_at.is_some());
        if self.replaced || self.digest != digest {
            self.backoff_ms = 0;
        } else if seen {
            self.backoff_ms = (self.backoff_ms * 2).clamp(BACKOFF_MS, BACKOFF_MS_MAX);
        }
        self.replaced = false;
        self.started = false;
        self.ready = false;
        self.attempt = Some(attempt);
        self.digest = digest.to_owned();
        self.sandbox_attempt = sandbox_attempt;
        self.boot = boot.to_owned();
    }
}

/// Whether a container that ended so runs again.
pub(super) fn restarts(policy: RestartPolicy, role: Role, exit: &Exit) -> bool {
    match (role, policy) {
        (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
        (Role::Init, RestartPolicy::Never) | (Role::Main, RestartPolicy::Never) => false,
        // An init container that succeeded is done, whatever the policy.
        (Role::Init, _) | (Role::Main, RestartPolicy::OnFailure) => exit.code != 0,
    }
}

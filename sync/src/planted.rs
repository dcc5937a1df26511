//! Mistakes planted on purpose, to prove that the simulation can fail: each is a line that somebody could have written.
//!
//! They exist only with the feature `planted-bugs`, which the simulator's crate alone asks for; in every program that is shipped
//! [`is`] is `false` to the compiler. Which one is planted is said once per simulated run, for its thread. Which are
//! found, and at which seed, is in `tests/simulation/seeds.rs`.

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A device's disk answers a sync before anything is durable.
    LostSync,
    /// The hub's disk does.
    HubLostSync,
    /// The hub answers a write whose commit failed as done.
    FailedCommitAnswered,
    /// A commit of the hub that failed leaves its objects in memory.
    CommitLeftInMemory,
    /// Records are acknowledged whatever came of storing them.
    AcknowledgedBeforeDurable,
    /// A device's loop is told of what came only once the disk has tidied up behind it.
    ChangeUntold,
    /// A technician's change is answered although the disk did not take it.
    OverrideBeforeDurable,
    /// A technician's change ends with the next pass that has a session.
    OverrideDropped,
    /// What a signed list no longer names stays.
    AbsenceIgnored,
    /// A signed list moves the heads and its states are not taken.
    ListNotApplied,
    /// After a list, nothing more of its log is sent in that session.
    SilentAfterList,
    /// The state of an earlier epoch is taken for the present one.
    StaleEpochTaken,
    /// A later observation gives way to an earlier one.
    OldObservationTaken,
    /// The end of a pod is told only if there is a session.
    EndNotTold,
    /// What a device reports is forgotten there once it has been sent.
    ReportForgottenUnanswered,
    /// The hub answers reports whose commit failed as taken.
    ReportAnsweredUncommitted,
    /// Reports that the hub has taken stay on the device's disk.
    OutboxUncleared,
    /// What runs is compared with what it was started from only while there is a session.
    RestartWhileOffline,
    /// A DaemonSet runs on devices that it does not select.
    SelectorIgnored,
    /// A watch begins one change too late.
    WatchGap,
    /// A watch begins with the change it was at.
    WatchRepeats,
    /// A forked log is continued under the same writer.
    ForkIgnored,
    /// A hub that was restored goes on as if nothing were missing.
    RestoreIgnored,
    /// Nobody looks at the signature of a batch.
    SignatureUnchecked,
    /// A log is cut off and its floor is not remembered.
    FloorForgotten,
    /// Logs are never cut off.
    LogUncut,
    /// Entries of the audit trail stay, however old they are.
    AuditUncut,
    /// Every run of the hub edits under the same automerge actor.
    ActorReused,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::LostSync,
        Self::HubLostSync,
        Self::FailedCommitAnswered,
        Self::CommitLeftInMemory,
        Self::AcknowledgedBeforeDurable,
        Self::ChangeUntold,
        Self::OverrideBeforeDurable,
        Self::OverrideDropped,
        Self::AbsenceIgnored,
        Self::ListNotApplied,
        Self::SilentAfterList,
        Self::StaleEpochTaken,
        Self::OldObservationTaken,
        Self::EndNotTold,
        Self::ReportForgottenUnanswered,
        Self::ReportAnsweredUncommitted,
        Self::OutboxUncleared,
        Self::RestartWhileOffline,
        Self::SelectorIgnored,
        Self::WatchGap,
        Self::WatchRepeats,
        Self::ForkIgnored,
        Self::RestoreIgnored,
        Self::SignatureUnchecked,
        Self::FloorForgotten,
        Self::LogUncut,
        Self::AuditUncut,
        Self::ActorReused,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants one mistake, or none, in everything that runs on this thread.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this mistake is planted here.
#[inline]
pub fn is(bug: Bug) -> bool {
    #[cfg(feature = "planted-bugs")]
    let planted = PLANTED.get() == Some(bug);
    #[cfg(not(feature = "planted-bugs"))]
    let planted = {
        let _ = bug;
        false
    };
    planted
}

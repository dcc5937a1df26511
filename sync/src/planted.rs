//! Mistakes planted on purpose, to prove that the simulation can fail: each is a line that somebody could have written.
//!
//! They exist only with the feature `planted-bugs`, which the simulator's crate alone asks for; in every program that is shipped
//! [`is`] is `false` to the compiler. Which one is planted is said once per simulated run, for its thread. The list with what finds each
//! is in `docs/testing.md`.

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A device's disk answers a sync before anything is durable.
    LostSync,
    /// The hub answers a write before it is committed.
    AnswerBeforeCommit,
    /// A device acknowledges records before they are durable.
    AcknowledgeBeforeDurable,
    /// What a signed list no longer names stays.
    AbsenceIgnored,
    /// The state of an earlier epoch is taken for the present one.
    StaleEpochTaken,
    /// A later observation gives way to an earlier one.
    OldObservationTaken,
    /// What waits for the hub is never bounded.
    OutboxUnbounded,
    /// A new session starts containers anew.
    RestartOnReconnect,
    /// A DaemonSet runs on devices that it does not select.
    SelectorIgnored,
    /// A watcher whose channel was full misses what came meanwhile.
    WatchGap,
    /// A watcher gets its last event twice.
    WatchRepeats,
    /// A forked log is continued under the same writer.
    ForkIgnored,
    /// A hub that was restored goes on as if nothing were missing.
    RestoreIgnored,
    /// A batch behind a gap is taken.
    GapTaken,
    /// A technician's change ends with the next session.
    OverrideDropped,
    /// A commit that failed leaves its objects in memory.
    RollbackForgotten,
    /// After a list, nothing more of its log is sent.
    SilentAfterList,
    /// An automerge actor id is used in every run of the hub.
    ActorReused,
    /// A device's write is answered before it is durable.
    OverrideBeforeDurable,
    /// A log is cut off and its floor is not remembered.
    FloorForgotten,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::LostSync,
        Self::AnswerBeforeCommit,
        Self::AcknowledgeBeforeDurable,
        Self::AbsenceIgnored,
        Self::StaleEpochTaken,
        Self::OldObservationTaken,
        Self::OutboxUnbounded,
        Self::RestartOnReconnect,
        Self::SelectorIgnored,
        Self::WatchGap,
        Self::WatchRepeats,
        Self::ForkIgnored,
        Self::RestoreIgnored,
        Self::GapTaken,
        Self::OverrideDropped,
        Self::RollbackForgotten,
        Self::SilentAfterList,
        Self::ActorReused,
        Self::OverrideBeforeDurable,
        Self::FloorForgotten,
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

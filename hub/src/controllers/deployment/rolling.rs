//! How large each ReplicaSet of a Deployment is to be next: plain arithmetic.
//!
//! Two bounds hold after every step, whatever is still on its way: of the Pods whose device is in contact at least
//! `replicas - silent - unavailable` stay available, and no more than `replicas + surge` are there or wished.

/// What the Deployment wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub replicas: i64,
    /// `maxSurge` in Pods.
    pub surge: i64,
    /// `maxUnavailable` in Pods.
    pub unavailable: i64,
    pub recreate: bool,
}

/// One ReplicaSet, oldest first in every list of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Set {
    /// `spec.replicas`
    pub wished: i64,
    /// Pods there, those on silent devices among them.
    pub active: i64,
    /// Of the active ones, those on silent devices.
    pub silent: i64,
    /// Told to end, on silent devices: they may run still.
    pub held: i64,
    /// Told to end, on devices in contact.
    pub ending: i64,
    /// In contact and available.
    pub available: i64,
    /// The size the whole Deployment could have when this set was last sized.
    pub annotated_max: Option<i64>,
}

impl Set {
    /// Pods that are there or will be: what counts against the surge.
    fn extent(&self) -> i64 {
        self.wished.max(self.active)
    }

    /// Available Pods that stay when the set has shrunk to what is wished of it. Those that are not available go first, and
    /// those on silent devices last.
    fn lasting(&self) -> i64 {
        self.available.min((self.wished - self.silent).max(0))
    }

    /// Wished Pods that are not on silent devices.
    fn in_contact(&self) -> i64 {
        (self.wished - self.silent).max(0)
    }
}

/// The next sizes in an update, or in the steady state.
pub fn step(sizes: &Sizes, sets: &[Set], newest: usize) -> Vec<i64> {
    let mut next: Vec<Set> = sets.to_vec();
    if sizes.recreate {
        recreate(sizes, &mut next, newest);
    } else {
        grow_newest(sizes, &mut next, newest);
        shrink_old(sizes, &mut next, newest);
    }
    next.into_iter().map(|set| set.wished).collect()
}

/// The size with which the set of a new template begins.
pub fn first_size(sizes: &Sizes, old: &[Set]) -> i64 {
    let mut sets = old.to_vec();
    sets.push(Set::default());
    let newest = sets.len() - 1;
    if sizes.recreate {
        // The old ones have to be gone first.
        let gone = old.iter().all(|set| set.extent() == 0 && set.ending == 0 && set.held == 0);
        return if gone { sizes.replicas } else { 0 };
    }
    grow_newest(sizes, &mut sets, newest);
    sets[newest].wished
}

/// Slots that stay with old Pods on silent devices, and with those that were told to end there.
fn kept_slots(sizes: &Sizes, sets: &[Set], newest: usize) -> i64 {
    let old: i64 = others(sets, newest).map(|set| set.silent.min(set.wished)).sum();
    let held: i64 = others(sets, newest).map(|set| set.held).sum();
    (old + held).min(sizes.replicas)
}

fn others(sets: &[Set], newest: usize) -> impl Iterator<Item = &Set> {
    sets.iter().enumerate().filter(move |(index, _)| *index != newest).map(|(_, set)| set)
}

fn grow_newest(sizes: &Sizes, sets: &mut [Set], newest: usize) {
    let goal = sizes.replicas - kept_slots(sizes, sets, newest);
    let total: i64 = sets.iter().map(|set| set.extent() + set.held).sum();
    let room = sizes.replicas + sizes.surge - total;
    let set = &mut sets[newest];
    if set.wished > sizes.replicas {
        set.wished = sizes.replicas;
    } else if set.wished < goal {
        set.wished += room.clamp(0, goal - set.wished);
    }
}

fn shrink_old(sizes: &Sizes, sets: &mut [Set], newest: usize) {
    let silent: i64 = sets.iter().map(|set| set.silent + set.held).sum();
    let available_min = (sizes.replicas - silent - sizes.unavailable).max(0);
    let lasting: i64 = sets.iter().map(Set::lasting).sum();
    // Old Pods that are not available cost nothing when they go, but a new one that is on its way has to have its place.
    let in_contact: i64 = sets.iter().map(Set::in_contact).sum();
    let pending = sets[newest].in_contact() - sets[newest].lasting();
    let mut removable = in_contact - available_min - pending;
    for index in (0..sets.len()).filter(|index| *index != newest) {
        let set = &mut sets[index];
        let unhealthy = set.in_contact() - set.lasting();
        let take = unhealthy.min(removable).max(0);
        set.wished -= take;
        removable -= take;
    }
    let mut spare = (lasting - available_min).max(0).min(removable.max(0));
    for index in (0..sets.len()).filter(|index| *index != newest) {
        let set = &mut sets[index];
        let take = set.in_contact().min(spare).max(0);
        set.wished -= take;
        spare -= take;
    }
    // What the size no longer allows at all: a Deployment made smaller while devices are silent.
    let mut slots = sizes.replicas;
    for index in (0..sets.len()).filter(|index| *index != newest) {
        let set = &mut sets[index];
        if set.wished == set.silent.min(set.wished) {
            set.wished = set.wished.min(slots);
            slots -= set.wished;
        }
    }
}

fn recreate(sizes: &Sizes, sets: &mut [Set], newest: usize) {
    for index in (0..sets.len()).filter(|index| *index != newest) {
        sets[index].wished = sets[index].wished.min(sets[index].silent);
    }
    let gone = others(sets, newest).all(|set| set.active <= set.silent && set.ending == 0);
    let goal = sizes.replicas - kept_slots(sizes, sets, newest);
    let set = &mut sets[newest];
    if set.wished > sizes.replicas || (gone && set.wished < goal) {
        set.wished = goal.max(set.wished.min(sizes.replicas));
    }
}

/// The sizes after the Deployment was scaled, without moving the update on: one set takes the size, several share it in
/// proportion (Kubernetes, "Proportional scaling").
pub fn proportional(sizes: &Sizes, sets: &[Set], newest: Option<usize>) -> Vec<i64> {
    let mut next: Vec<i64> = sets.iter().map(|set| set.wished).collect();
    let sized: Vec<usize> = (0..sets.len()).filter(|index| sets[*index].wished > 0).collect();
    let only = match sized.as_slice() {
        [] => newest.or_else(|| sets.len().checked_sub(1)),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(only) = only {
        next[only] = sizes.replicas;
        return next;
    }
    if sizes.recreate || sized.is_empty() {
        return next;
    }
    let allowed = if sizes.replicas > 0 { sizes.replicas + sizes.surge } else { 0 };
    let total: i64 = next.iter().sum();
    let to_add = allowed - total;
    let mut order = sized;
    // The largest first; of equals the newest when growing, the oldest when shrinking.
    order.sort_by(|one, other| {
        next[*other].cmp(&next[*one]).then_with(|| if to_add > 0 { other.cmp(one) } else { one.cmp(other) })
    });
    let before = next.clone();
    let mut added = 0;
    for index in &order {
        let fraction = fraction(before[*index], sets[*index].annotated_max.unwrap_or(total), allowed);
        let left = to_add - added;
        let share = if to_add > 0 { fraction.min(left).max(0) } else { fraction.max(left).min(0) };
        next[*index] = (before[*index] + share).max(0);
        added += next[*index] - before[*index];
    }
    if let Some(largest) = order.first() {
        next[*largest] = (next[*largest] + to_add - added).max(0);
    }
    next
}

/// The set's part of the change, rounded to the nearest.
fn fraction(wished: i64, max_before: i64, max_now: i64) -> i64 {
    if max_now == 0 {
        return -wished;
    }
    let max_before = max_before.max(1);
    (wished * max_now * 2 + max_before) / (max_before * 2) - wished
}

#[cfg(test)]
mod tests;

use super::*;

#[test]
fn waits_grow_within_their_bounds() {
    let mut backoff = Backoff::new();
    let mut longest = Vec::new();
    for _ in 0..8 {
        longest.push(backoff.clone().wait_ms(1_000, 0, None));
        // The largest remainder of each bound.
        longest.pop();
        longest.push(bound(&backoff, 1_000));
        backoff.wait_ms(1_000, 0, None);
    }
    assert_eq!(longest, [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000]);
    assert_eq!(bound(&backoff, 1_000 + 119_999), 5_000);
    assert_eq!(bound(&backoff, 1_000 + 120_000), 60_000);
    assert_eq!(backoff.wait_ms(1_000, 0, None), 0, "full jitter begins at nothing");
}

/// The largest wait that any random number gives.
fn bound(backoff: &Backoff, now_ms: u64) -> u64 {
    (0..=60_000).map(|random| backoff.clone().wait_ms(now_ms, random, None)).max().unwrap()
}

#[test]
fn only_a_stable_connection_ends_an_outage() {
    let mut backoff = Backoff::new();
    for _ in 0..10 {
        backoff.wait_ms(0, 0, None);
    }
    backoff.connected(130_000);
    assert_eq!(bound(&backoff, 189_999), 60_000, "59 s are not stable");
    let mut unstable = backoff.clone();
    unstable.wait_ms(189_999, 0, None);
    assert_eq!(bound(&unstable, 400_000), 60_000, "time without a connection does not count");
    assert_eq!(bound(&backoff, 190_000), 250, "60 s are");
}

#[test]
fn the_hubs_word_wins() {
    let mut backoff = Backoff::new();
    assert_eq!(backoff.wait_ms(0, 0, Some(30_000)), 30_000);
    for random in [1, 77_777, u64::MAX] {
        assert!((30_000..=37_500).contains(&backoff.wait_ms(0, random, Some(30_000))));
    }
    assert!(backoff.wait_ms(0, u64::MAX, Some(u64::MAX)) <= 75 * 60_000);
    for _ in 0..100 {
        backoff.wait_ms(u64::MAX, u64::MAX, None);
    }
}

#[test]
fn roads_are_tried_best_first() {
    let steps = |preference| {
        let mut roads = Roads::new(preference, 2, 1);
        std::iter::repeat_with(|| roads.step()).take(5).collect::<Vec<_>>()
    };
    let (first, second) = (Step::Try(Road::Quic(0)), Step::Try(Road::Quic(1)));
    let broker = Step::Try(Road::Mqtt(0));
    assert_eq!(steps(Preference::Auto), [first, second, broker, Step::Wait, first]);
    assert_eq!(steps(Preference::Quic), [first, second, Step::Wait, first, second]);
    assert_eq!(steps(Preference::Mqtt), [broker, Step::Wait, broker, Step::Wait, broker]);
    assert!(Roads::new(Preference::Mqtt, 2, 0).is_empty());
    assert_eq!(Roads::new(Preference::Mqtt, 2, 0).step(), Step::Wait);
}

#[test]
fn a_worse_road_is_left_when_a_better_one_may_work() {
    let mut roads = Roads::new(Preference::Auto, 2, 1);
    roads.connected(Road::Mqtt(0), 1_000, 0);
    assert_eq!(roads.better_at_ms(), Some(301_000));
    assert_eq!(roads.better(300_999, 0), []);
    assert_eq!(roads.better(301_000, 0), [Road::Quic(0), Road::Quic(1)]);
    assert_eq!(roads.better(301_001, 0), [], "the next probe has its time");
    roads.connected(Road::Quic(1), 302_000, 0);
    assert_eq!(roads.better_at_ms(), None, "another address of the best kind is as good");
    roads.disconnected();
    assert_eq!(roads.step(), Step::Try(Road::Quic(0)));
}

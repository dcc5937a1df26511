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
fn a_busy_hub_is_given_more_time() {
    let bound = |backoff: &Backoff, now_ms| {
        (0..=60_000).map(|random| backoff.clone().busy_wait_ms(now_ms, random)).max().unwrap()
    };
    let mut backoff = Backoff::new();
    let mut longest = Vec::new();
    for _ in 0..6 {
        longest.push(bound(&backoff, 0));
        assert_eq!(backoff.busy_wait_ms(0, 0), 0, "full jitter begins at nothing");
    }
    assert_eq!(longest, [1_000, 2_000, 4_000, 8_000, 16_000, 16_000]);
    assert_eq!(bound(&backoff, 120_000), 60_000);
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
    let order = |preference| Roads::new(preference, 2, 1).order().to_vec();
    assert_eq!(order(Preference::Auto), [Road::Quic(0), Road::Quic(1), Road::Mqtt(0)]);
    assert_eq!(order(Preference::Quic), [Road::Quic(0), Road::Quic(1)]);
    assert_eq!(order(Preference::Mqtt), [Road::Mqtt(0)]);
    assert!(Roads::new(Preference::Mqtt, 2, 0).order().is_empty());
}

#[test]
fn a_worse_road_is_left_when_a_better_one_may_work() {
    let mut roads = Roads::new(Preference::Auto, 2, 1);
    roads.connected(Road::Mqtt(0), 1_000, 0);
    assert_eq!(roads.better_at_ms(), Some(21_000));
    assert_eq!(roads.better(20_999, 0), []);
    assert_eq!(roads.better(21_000, 0), [Road::Quic(0), Road::Quic(1)]);
    assert_eq!(roads.better(21_001, 0), [], "the next attempt has its time");
    assert_eq!(roads.better_at_ms(), Some(61_000), "and each waits longer");
    for hour in 1..=10 {
        roads.better(hour * 3_600_000, 0);
    }
    assert_eq!(roads.better_at_ms(), Some(36_000_000 + 300_000));
    assert_eq!(roads.others(), [Road::Quic(0), Road::Quic(1)]);
    roads.connected(Road::Quic(1), 302_000, 0);
    assert_eq!(roads.better_at_ms(), None, "another address of the best kind is as good");
    assert_eq!(roads.others(), [Road::Quic(0), Road::Mqtt(0)]);
    roads.disconnected();
    roads.connected(Road::Mqtt(0), 400_000, 0);
    assert_eq!(roads.better_at_ms(), Some(420_000), "the best road worked: it is looked for soon");
}

#[test]
fn who_has_nothing_new_to_expect_waits_longer_but_not_for_ever() {
    assert_eq!(wait_without_news_ms(0), 0);
    assert_eq!(wait_without_news_ms(5_000), 20_000);
    assert_eq!(wait_without_news_ms(40_000), 60_000);
    assert_eq!(wait_without_news_ms(3_600_000), 3_600_000, "the hub's own wish is never shortened");
}

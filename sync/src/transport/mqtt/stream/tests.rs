use super::*;

/// Both ends, and what is on its way between them.
struct Pair {
    device: Stream,
    hub: Stream,
    now_ms: u64,
}

impl Pair {
    fn new() -> Self {
        let mut hub = Stream::new(Role::Hub, 0);
        hub.trust();
        Self { device: Stream::new(Role::Device, 0), hub, now_ms: 0 }
    }

    fn up(&mut self, length: usize) -> Body {
        self.device.send(Bytes::from(vec![7; length]), self.now_ms)
    }
}

#[test]
fn bytes_arrive_once_and_in_order() {
    let mut pair = Pair::new();
    let (first, second) = (pair.up(10), pair.up(20));
    assert_eq!(pair.hub.handle(first.clone(), 0).unwrap().unwrap().len(), 10);
    assert_eq!(pair.hub.handle(first.clone(), 0), Ok(None), "a duplicate");
    assert_eq!(pair.hub.handle(second, 0).unwrap().unwrap().len(), 20);
    assert_eq!(pair.hub.handle(first, 0), Ok(None), "an old duplicate");
}

#[test]
fn a_gap_an_overlap_and_an_overrun_end_the_stream() {
    let mut pair = Pair::new();
    let (_lost, second) = (pair.up(10), pair.up(20));
    assert_eq!(pair.hub.handle(second, 0), Err(Broken::Gap { expected: 0, found: 10, missing: 10 }));

    let data = |offset, length| Body::Data { offset, consumed: 0, data: Bytes::from(vec![0; length]) };
    let mut hub = Pair::new().hub;
    hub.handle(data(0, 10), 0).unwrap();
    assert_eq!(hub.handle(data(5, 10), 0), Err(Broken::Contradiction));
    assert_eq!(hub.handle(data(u64::MAX, 10), 0), Err(Broken::Contradiction));
    assert_eq!(hub.handle(Body::Ack { consumed: 1 }, 0), Err(Broken::Contradiction), "nothing was sent");

    let mut offset = 0;
    let overrun = loop {
        match hub.handle(data(10 + offset, 5_000), 0) {
            Ok(_) => offset += 5_000,
            Err(error) => break error,
        }
    };
    assert_eq!(overrun, Broken::Overrun);
    assert!(offset + 10 <= WINDOW_BYTES && offset + 5_010 > WINDOW_BYTES);

    let mut hub = Pair::new().hub;
    for offset in 0..WINDOW_FRAMES as u64 {
        hub.handle(data(offset, 1), 0).unwrap();
    }
    assert_eq!(hub.handle(data(WINDOW_FRAMES as u64, 1), 0), Err(Broken::Overrun), "a flood of tiny messages");
}

#[test]
fn a_stranger_gets_little_room() {
    let mut hub = Stream::new(Role::Hub, 0);
    let data = Body::Data { offset: 0, consumed: 0, data: Bytes::from(vec![0; 8_000]) };
    hub.handle(data, 0).unwrap();
    let data = Body::Data { offset: 8_000, consumed: 0, data: Bytes::from(vec![0; 8_000]) };
    hub.handle(data, 0).unwrap();
    let data = Body::Data { offset: 16_000, consumed: 0, data: Bytes::from(vec![0; 8_000]) };
    assert_eq!(hub.handle(data, 0), Err(Broken::Overrun));
}

#[test]
fn credit_bounds_bytes_and_messages_and_comes_back_with_consumption() {
    let mut pair = Pair::new();
    let mut sent = 0;
    while pair.device.credit() > 0 {
        let length = pair.device.credit();
        pair.up(length);
        sent += length as u64;
    }
    assert_eq!(sent, WINDOW_BYTES);

    let mut pair = Pair::new();
    for _ in 0..WINDOW_FRAMES {
        assert!(pair.device.credit() > 0);
        let body = pair.up(1);
        pair.hub.handle(body, 0).unwrap();
    }
    assert_eq!(pair.device.credit(), 0);
    assert_eq!(pair.hub.poll(0), Ok(None), "nothing consumed, nothing to say");
    pair.hub.consume(4, 4);
    let ack = pair.hub.poll(0).unwrap().unwrap();
    assert_eq!(ack, Body::Ack { consumed: 4 });
    assert_eq!(pair.hub.poll(0), Ok(None), "said once");
    pair.device.handle(ack, 0).unwrap();
    assert_eq!(pair.device.in_flight.len(), WINDOW_FRAMES - 4);
    assert!(pair.device.credit() > 0);
}

#[test]
fn what_is_sent_back_acknowledges_on_its_way() {
    let mut pair = Pair::new();
    let body = pair.up(100);
    pair.hub.handle(body, 0).unwrap();
    pair.hub.consume(100, 1);
    let answer = pair.hub.send(Bytes::from_static(b"ok"), 0);
    pair.device.handle(answer, 0).unwrap();
    assert_eq!(pair.device.acknowledged, 100);
    assert_eq!(pair.device.timeout_ms(), 120_000, "nothing left to ask about");
}

#[test]
fn a_lost_end_shows_itself_by_a_probe() {
    let mut pair = Pair::new();
    pair.up(100);
    assert_eq!(pair.device.timeout_ms(), PROBE_MS);
    assert_eq!(pair.device.poll(PROBE_MS - 1), Ok(None));
    let probe = pair.device.poll(PROBE_MS).unwrap().unwrap();
    assert_eq!(probe, Body::Probe { sent: 100 });
    assert_eq!(pair.hub.handle(probe, PROBE_MS), Err(Broken::Gap { expected: 0, found: 100, missing: 100 }));
}

#[test]
fn a_slow_reader_is_no_dead_peer() {
    let mut pair = Pair::new();
    let body = pair.up(100);
    pair.hub.handle(body, 0).unwrap();
    let mut probes = 0;
    let mut now_ms = 0;
    while now_ms < 600_000 {
        now_ms = pair.device.timeout_ms();
        if let Some(probe) = pair.device.poll(now_ms).unwrap() {
            probes += 1;
            pair.hub.handle(probe, now_ms).unwrap();
            let answer = pair.hub.poll(now_ms).unwrap().unwrap();
            assert_eq!(answer, Body::Ack { consumed: 0 });
            pair.device.handle(answer, now_ms).unwrap();
        }
    }
    assert!((5..20).contains(&probes), "{probes} probes in ten minutes");
}

#[test]
fn a_silent_peer_is_found_dead() {
    for (role, idle_ms) in [(Role::Device, 120_000), (Role::Hub, 150_000)] {
        let mut stream = Stream::new(role, 0);
        assert_eq!(stream.timeout_ms(), idle_ms);
        assert_eq!(stream.poll(idle_ms), Ok(Some(Body::Probe { sent: 0 })));
        assert_eq!(stream.timeout_ms(), idle_ms + ANSWER_MS);
        assert_eq!(stream.poll(idle_ms + ANSWER_MS - 1), Ok(None));
        assert_eq!(stream.poll(idle_ms + ANSWER_MS), Err(Broken::Silent));
        stream.handle(Body::Ack { consumed: 0 }, idle_ms + ANSWER_MS).unwrap();
        assert_eq!(stream.poll(idle_ms + ANSWER_MS), Ok(None), "heard in the last moment");
    }
}

#[test]
fn an_opening_is_answered_each_time_until_bytes_flow() {
    let mut hub = Stream::new(Role::Hub, 0);
    for _ in 0..2 {
        hub.handle(Body::Open, 0).unwrap();
        assert_eq!(hub.poll(0), Ok(Some(Body::Ack { consumed: 0 })));
    }
    hub.handle(Body::Data { offset: 0, consumed: 0, data: Bytes::from_static(b"x") }, 0).unwrap();
    hub.handle(Body::Open, 0).unwrap();
    assert_eq!(hub.poll(0), Ok(None));
}

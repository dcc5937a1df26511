//! What a device that is away for years drops, and in which order.

use super::*;

fn row(number: u64, subject: &str, body: Option<usize>) -> OutboxRow {
    let body = body.map(|bytes| vec![b'x'; bytes]);
    OutboxRow {
        subject: format!("{subject}/{number}"),
        incarnation: 1,
        boot: 1,
        seq: number,
        time_ms: number,
        urgent: true,
        body,
    }
}

#[test]
fn the_oldest_events_go_first_and_ends_last() {
    let ends = (0..600).map(|number| row(number, "pod", None));
    let events = (600..1100).map(|number| row(number, "event", Some(100)));
    let rows: Vec<OutboxRow> = ends.chain(events).collect();
    let dropped = surplus(rows.iter());
    assert!(dropped.len() >= 1100 - OUTBOX_ROWS_MAX && dropped.len() < 300, "{}", dropped.len());
    assert!(dropped.iter().all(|row| row.subject.starts_with("event/")));
    assert_eq!(dropped.iter().map(|row| row.seq).max(), Some(600 + dropped.len() as u64 - 1), "not the oldest");
    // Only ends: then they go, the oldest first.
    let ends: Vec<OutboxRow> = (0..2000).map(|number| row(number, "pod", None)).collect();
    let dropped = surplus(ends.iter());
    assert!(2000 - dropped.len() <= OUTBOX_ROWS_MAX && dropped[0].seq == 0);
    // Large events: by bytes.
    let large: Vec<OutboxRow> = (0..100).map(|number| row(number, "event", Some(16 * 1024))).collect();
    let kept = 100 - surplus(large.iter()).len();
    assert!(kept * 16 * 1024 <= OUTBOX_BYTES_MAX && kept > 20, "{kept}");
}

#[test]
fn within_its_bounds_nothing_goes() {
    let rows: Vec<OutboxRow> = (0..OUTBOX_ROWS_MAX as u64).map(|number| row(number, "event", Some(10))).collect();
    assert_eq!(surplus(rows.iter()), []);
}

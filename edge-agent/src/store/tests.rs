//! What belongs together is durable together.

use super::*;

fn end(pod: &str) -> OutboxRow {
    let subject = format!("pod/{pod}");
    OutboxRow { subject, incarnation: 1, boot: 1, seq: 1, time_ms: 1, urgent: true, body: None }
}

#[tokio::test]
async fn a_pod_is_not_forgotten_before_its_end_waits_for_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    store.set_histories(vec![("p".into(), Some("{}".into()))], Vec::new()).await.unwrap();

    // The outbox cannot be written: then the history stays, and the next plan ends the pod once more.
    let other = Connection::open(folder.path().join("device.db")).unwrap();
    other.execute_batch("ALTER TABLE outbox RENAME TO elsewhere").unwrap();
    store.set_histories(vec![("p".into(), None)], vec![end("p")]).await.unwrap_err();
    other.execute_batch("ALTER TABLE elsewhere RENAME TO outbox").unwrap();
    let (again, loaded) = Store::open(folder.path()).unwrap();
    assert_eq!((loaded.histories.len(), loaded.outbox.len()), (1, 0));

    again.set_histories(vec![("p".into(), None)], vec![end("p")]).await.unwrap();
    let (_, loaded) = Store::open(folder.path()).unwrap();
    assert_eq!((loaded.histories.len(), loaded.outbox), (0, vec![end("p")]));
}

#[tokio::test]
async fn a_row_of_the_wrong_shape_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    store.set_histories(vec![("p".into(), Some("{}".into()))], vec![end("p"), end("q")]).await.unwrap();
    let other = Connection::open(folder.path().join("device.db")).unwrap();
    other.execute("UPDATE outbox SET seq = 'many' WHERE subject = 'pod/q'", []).unwrap();
    let (_, loaded) = Store::open(folder.path()).unwrap();
    assert_eq!((loaded.histories.len(), loaded.outbox), (1, vec![end("p")]));
}

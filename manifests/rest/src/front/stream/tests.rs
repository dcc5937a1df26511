use flotilla_manifests::kind;
use flotilla_manifests::time::Timestamp;
use serde_json::Value;

use super::*;
use crate::negotiate::Shape;
use crate::route::IncludeObject;
use crate::watch::Filter;

struct Open {
    events: mpsc::Sender<WatchEvent>,
    out: mpsc::Receiver<Bytes>,
    shutdown: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

fn open(seconds: u64, initial: usize, chunks_max: usize) -> Open {
    let (events, from_backend) = mpsc::channel(16);
    let (to_client, out) = mpsc::channel(chunks_max);
    let (shutdown, ends) = watch::channel(false);
    let filter = Filter::parse("", "", &kind::CONFIG_MAP).unwrap();
    let watching = Watching {
        lines: Lines::of(&kind::CONFIG_MAP, Shape::Whole, filter, IncludeObject::Metadata, 7),
        initial: (0..initial).map(|number| map(number, 100_000)).collect(),
        marks_initial_end: false,
        bookmarks: true,
        seconds,
        clock: Arc::new(|| Timestamp(0)),
        events: from_backend,
        out: to_client,
        shutdown: ends,
    };
    Open { events, out, shutdown, task: tokio::spawn(watching.run()) }
}

fn map(number: usize, bytes: usize) -> Arc<Object> {
    let mut object = Object::empty(&kind::CONFIG_MAP, "default", &format!("c{number}"));
    object.set_resource_version(8 + number as u64);
    object.value_mut()["data"] = serde_json::json!({"a": "x".repeat(bytes)});
    Arc::new(object)
}

fn words(chunk: &Bytes) -> Vec<String> {
    let lines = std::str::from_utf8(chunk).unwrap().lines();
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn bookmarks_come_every_minute_and_the_deadline_ends_the_watch() {
    let mut watch = open(150, 0, 16);
    let begun = Instant::now();
    assert_eq!(words(&watch.out.recv().await.unwrap()), ["BOOKMARK"]);
    assert_eq!(begun.elapsed().as_secs(), 60);
    assert_eq!(words(&watch.out.recv().await.unwrap()), ["BOOKMARK"]);
    assert!(watch.out.recv().await.is_none());
    assert_eq!(begun.elapsed().as_secs(), 150);
}

#[tokio::test(start_paused = true)]
async fn waiting_events_go_out_together() {
    let mut watch = open(1000, 0, 16);
    for number in 0..3 {
        watch.events.try_send(WatchEvent::Added(map(number, 1))).unwrap();
    }
    assert_eq!(words(&watch.out.recv().await.unwrap()), ["ADDED", "ADDED", "ADDED"]);
    watch.events.try_send(WatchEvent::Expired).unwrap();
    assert_eq!(words(&watch.out.recv().await.unwrap()), ["ERROR"]);
    assert!(watch.out.recv().await.is_none(), "nothing follows an error");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_or_goes_does_not_keep_the_task() {
    let slow = open(30, 10, 1);
    slow.task.await.unwrap();
    drop(slow.out);
    let gone = open(1_000_000, 0, 1);
    drop(gone.out);
    gone.task.await.unwrap();
    let ended = open(1_000_000, 10, 1);
    ended.shutdown.send(true).unwrap();
    ended.task.await.unwrap();
    let backend_gone = open(1_000_000, 0, 1);
    drop(backend_gone.events);
    backend_gone.task.await.unwrap();
}

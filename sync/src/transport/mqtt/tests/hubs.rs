//! Several hubs at one broker, as they may be one day: openings are shared, streams are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::transport::mqtt::topic;

/// A hub that counts whom it serves, by echo.
fn serve_as(name: &str, broker: &Broker, site: &Site) -> (tokio::task::JoinHandle<()>, Arc<AtomicUsize>) {
    let (sender, mut incoming) = tokio::sync::mpsc::channel(64);
    let listening = hub::listen_as(HubName::parse(name).unwrap(), broker.url(), &site.door, sender);
    let served = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    let serving = tokio::spawn(async move {
        let _listening = listening;
        while let Some(Incoming::Session(pipe)) = incoming.recv().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(crate::transport::fixture::echo(pipe));
        }
    });
    (serving, served)
}

#[tokio::test]
async fn hubs_share_openings_and_each_stream_stays_with_one() {
    let Some(broker) = Broker::start(Version::V5) else { return };
    let (site, target) = (Site::new(), broker.target());
    let (one, by_one) = serve_as("1", &broker, &site);
    let mut early = connect_when_open(&site.connector("early"), &target).await;
    check_echo(&mut early, "early", 10_000).await;
    // Another hub comes: whoever is served goes on.
    let (two, by_two) = serve_as("2", &broker, &site);
    let (mut pipes, mut opened) = (Vec::new(), 0);
    while by_two.load(Ordering::Relaxed) < 5 || by_one.load(Ordering::Relaxed) < 5 {
        let name = format!("edge-{opened}");
        let mut pipe = connect_when_open(&site.connector(&name), &target).await;
        check_echo(&mut pipe, &name, 100_000).await;
        pipes.push(pipe);
        opened += 1;
        assert!(opened < 100, "one hub gets all: {by_one:?} {by_two:?}");
    }
    check_bytes(&mut early, 10_000).await;

    // One goes: the streams it had end, the others do not, and all find the one that stays.
    let had = by_one.load(Ordering::Relaxed);
    two.abort();
    let mut ended = 0;
    for (number, mut pipe) in pipes.into_iter().enumerate() {
        let echoed = async {
            pipe.writer.write_all(b"x").await?;
            pipe.writer.flush().await?;
            pipe.reader.read_u8().await
        };
        if tokio::time::timeout(Duration::from_secs(30), echoed).await.expect("the pipe hangs").is_err() {
            ended += 1;
            let name = format!("edge-{number}");
            check_echo(&mut connect_when_open(&site.connector(&name), &target).await, &name, 1_000).await;
        }
    }
    check_bytes(&mut early, 10_000).await;
    assert_eq!(ended, by_two.load(Ordering::Relaxed));
    assert_eq!(by_one.load(Ordering::Relaxed), had + ended);
    one.abort();
}

#[test]
fn only_openings_are_shared_and_only_where_a_broker_can() {
    let installation = InstallationId::of(&Site::new().installation.root().public());
    let filters = topic::hub_filters(&installation, &HubName::only(), "secret");
    let said = |shares| filters.iter().map(|filter| filter.said(shares)).collect::<Vec<_>>();
    let root = format!("flotilla/v2/{installation}/+/+");
    let plain = ["open", "up/1", "gone"].map(|last| format!("{root}/{last}"));
    assert_eq!(said(false), plain);
    let [_, up, gone] = plain;
    assert_eq!(said(true), [format!("$share/secret/{root}/open"), up, gone]);
}

//! Images as the plan sees them: waited for, taken at the start, kept while used, exchanged only at the next start.

use super::*;
use crate::image::{ImageFacts, ImageUser, Images};
use crate::runtime::{ContainerConfig, Facilities, OciRuntime};

fn place(now: u64) -> Place {
    let oci = OciRuntime { name: "crun".into(), version: "1.8".into(), path: "/usr/bin/crun".into() };
    Place { facilities: Arc::new(Facilities { oci: Ok(oci), ..Facilities::default() }), ..super::place(now) }
}

fn digest(letter: &str) -> String {
    format!("sha256:{}", letter.repeat(64))
}

/// One image under the name `web`.
fn images(letter: &str) -> Arc<Images> {
    let facts = ImageFacts {
        digest: digest(letter),
        lower_dirs: vec![format!("/images/{letter}").into()],
        entrypoint: vec![format!("/{letter}")],
        user: ImageUser { text: String::new(), uid: Some(0), gid: Some(0) },
        stop_signal: Some("SIGQUIT".into()),
        ..ImageFacts::default()
    };
    let names = BTreeMap::from([("docker.io/library/web:latest".to_owned(), facts.digest.clone())]);
    let by_digest = BTreeMap::from([(facts.digest.clone(), Arc::new(facts))]);
    Arc::new(Images { generation: 1, names, by_digest, ..Images::default() })
}

fn web() -> DesiredPods {
    one(
        json!({"runtimeClassName": "oci", "terminationGracePeriodSeconds": 5, "containers": [{"name": "a", "image": "web"}]}),
    )
}

fn uses(letter: &str) -> ImageUses {
    BTreeMap::from([(digest(letter), BTreeSet::from(["default/web".to_owned()]))])
}

fn started(plan: &Plan) -> Option<&ContainerConfig> {
    plan.actions.get(UID)?.iter().find_map(|step| match step {
        Action::StartContainer(config) => Some(&**config),
        _ => None,
    })
}

#[test]
fn a_pod_waits_for_its_image_and_starts_when_it_comes() {
    let mut world = World::default();
    let (done, plan) = world.settle(&web(), &place(1_000));
    assert_eq!(done, Vec::<String>::new(), "nothing is made for a container that cannot start");
    let status = &plan.statuses[UID]["containerStatuses"][0];
    assert_eq!(status["state"]["waiting"]["reason"], "ImagePullBackOff");
    assert!(plan.images.is_empty() && plan.notices.contains_key(UID));

    world.observed.images = images("a");
    let plan = plan_of(&world, 2_000);
    let config = started(&plan).unwrap();
    assert_eq!(config.argv, ["/a"]);
    assert_eq!((config.run_as_user, config.run_as_group), (Some(0), Some(0)));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
    let root = config.root.as_ref().unwrap();
    assert_eq!((root.image.as_str(), root.image_digest.clone()), ("web", digest("a")));
    assert_eq!(plan.images, uses("a"), "it stays from before the start on");
}

fn plan_of(world: &World, now: u64) -> Plan {
    plan(&web(), &world.observed, &world.history, &place(now))
}

#[test]
fn another_image_under_the_name_counts_from_the_next_start_on() {
    let mut world = World::default();
    world.observed.images = images("a");
    world.settle(&web(), &place(1_000));
    world.observed.images = images("b");
    let (done, plan) = world.settle(&web(), &place(2_000));
    assert_eq!(done, Vec::<String>::new(), "a new image restarts nobody");
    let id = &plan.statuses[UID]["containerStatuses"][0]["imageID"];
    assert_eq!(*id, json!(format!("docker.io/library/web@{}", digest("a"))));
    assert_eq!(plan.images.keys().cloned().collect::<Vec<_>>(), [digest("a"), digest("b")]);

    world.ends("a", 1, 60_000);
    let plan = (1..10).map(|minute| plan_of(&world, 60_000 * minute)).find(|plan| started(plan).is_some()).unwrap();
    assert_eq!(started(&plan).unwrap().argv, ["/b"]);
    world.settle(&web(), &place(700_000));
    let (_, plan) = world.settle(&web(), &place(700_000));
    assert_eq!(plan.images, uses("b"), "nothing keeps the old one any more");
}

#[test]
fn an_image_taken_away_stops_nothing_that_runs() {
    let mut world = World::default();
    world.observed.images = images("a");
    world.settle(&web(), &place(1_000));
    world.observed.images = Arc::default();
    let (done, plan) = world.settle(&web(), &place(2_000));
    assert_eq!((done, plan.images), (Vec::new(), uses("a")));
    world.ends("a", 0, 60_000);
    let (_, plan) = world.settle(&web(), &place(120_000));
    let status = &plan.statuses[UID]["containerStatuses"][0];
    assert_eq!(status["state"]["waiting"]["reason"], "ImagePullBackOff");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 0);
}

#[test]
fn a_pod_that_is_gone_keeps_no_image() {
    let mut world = World::default();
    world.observed.images = images("a");
    world.settle(&web(), &place(1_000));
    let nothing = DesiredPods::default();
    let plan = plan(&nothing, &world.observed, &world.history, &place(2_000));
    assert_eq!(plan.images, uses("a"), "it still runs");
    world.ends("a", 0, 3_000);
    world.settle(&nothing, &place(3_000));
    assert!(super::plan(&nothing, &world.observed, &world.history, &place(3_000)).images.is_empty());
}

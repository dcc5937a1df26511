use std::path::Path;

use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::reader::{Reader, Selection, Step};
use super::*;
use crate::reconcile::ContainerHistory;
use crate::runtime::Exit;
use crate::shim::files::rotated_path;
use crate::shim::output::{LogFile, Retention, Stream};

const ALL: Selection = Selection { tail_lines: None, since: None, timestamps: false, bytes_max: None };

fn read(path: &Path, selection: Selection) -> String {
    drain(&mut Reader::open(path, selection).unwrap())
}

fn drain(reader: &mut Reader) -> String {
    let mut text = Vec::new();
    while let Step::Chunk(chunk) = reader.step().unwrap() {
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).unwrap()
}

fn stamp(second: u64) -> String {
    format!("1970-01-01T00:00:{second:02}.000000001Z")
}

/// Lines `0`..`lines`, one a second, rotated every 40 bytes or so into up to `files_max` files.
fn written(path: &Path, lines: u64, files_max: u32) {
    let mut log = LogFile::open(path, Retention { file_bytes_max: 100, files_max });
    for line in 0..lines {
        log.write(Stream::Stdout, format!("{line}\n").as_bytes(), &stamp(line));
    }
}

#[test]
fn tail_since_and_limits_reach_over_rotated_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    written(&path, 10, 5);
    assert!(rotated_path(&path, 3).exists(), "the case needs several files");
    let expect = |selection: Selection, expected: &str| assert_eq!(read(&path, selection), expected, "{selection:?}");
    expect(ALL, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    expect(Selection { tail_lines: Some(0), ..ALL }, "");
    expect(Selection { tail_lines: Some(1), ..ALL }, "9\n");
    expect(Selection { tail_lines: Some(5), ..ALL }, "5\n6\n7\n8\n9\n");
    expect(Selection { tail_lines: Some(99), ..ALL }, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    expect(Selection { since: Some(Timestamp(7_000)), ..ALL }, "7\n8\n9\n");
    expect(Selection { since: Some(Timestamp(7_001)), ..ALL }, "8\n9\n");
    expect(Selection { bytes_max: Some(5), ..ALL }, "0\n1\n2");
    expect(Selection { tail_lines: Some(1), timestamps: true, ..ALL }, "1970-01-01T00:00:09.000000001Z 9\n");
    assert_eq!(read(&folder.path().join("none.log"), ALL), "");
}

#[test]
fn parts_of_a_line_become_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let mut log = LogFile::open(&path, Retention::default());
    let long = "x".repeat(50_000);
    log.write(Stream::Stdout, format!("{long}\nshort\nrest").as_bytes(), &stamp(1));
    log.finish(Stream::Stdout, &stamp(2));
    let timed = read(&path, Selection { timestamps: true, ..ALL });
    assert_eq!(timed, format!("{0} {long}\n{0} short\n{1} rest\n", stamp(1), stamp(2)));
}

#[test]
fn a_follower_misses_nothing_when_files_are_rotated_between_its_looks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let retention = Retention { file_bytes_max: 100, files_max: 5 };
    let mut log = LogFile::open(&path, retention);
    let mut write = |line: u64| log.write(Stream::Stdout, format!("{line}\n").as_bytes(), &stamp(line));
    write(0);
    let mut reader = Reader::open(&path, ALL).unwrap();
    assert_eq!(drain(&mut reader), "0\n");
    // Into the file being read, then over two rotations.
    (1..6).for_each(&mut write);
    assert_eq!(drain(&mut reader), "1\n2\n3\n4\n5\n");
    write(6);
    assert_eq!(drain(&mut reader), "6\n");
    assert_eq!(drain(&mut reader), "");
}

#[test]
fn a_full_disk_loses_output_and_nothing_else() {
    // Every write to this device fails with ENOSPC.
    let mut log = LogFile::open(Path::new("/dev/full"), Retention { file_bytes_max: u64::MAX, files_max: 1 });
    log.write(Stream::Stderr, b"lost\n", &stamp(1));
    assert_eq!(log.lost_bytes(), (stamp(1).len() + " stderr F lost\n".len()) as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However the output comes in pieces, it goes out as it was.
    #[test]
    fn text_survives_the_format(text in "[a-z\n]{0,300}", cuts in proptest::collection::vec(1..40_usize, 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(&path, Retention { file_bytes_max: 2_000, files_max: 100 });
        let mut rest = text.as_bytes();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            log.write(Stream::Stdout, piece, &stamp(3));
            rest = tail;
        }
        log.finish(Stream::Stdout, &stamp(4));
        let files = (1..100).filter(|&age| rotated_path(&path, age).exists()).count();
        prop_assume!(files < 5);
        let expected = if text.is_empty() || text.ends_with('\n') { text.clone() } else { format!("{text}\n") };
        prop_assert_eq!(read(&path, ALL), expected);
    }
}

fn request(container: &str, previous: bool) -> LogRequest {
    LogRequest {
        namespace: "default".into(),
        pod: "web".into(),
        container: container.into(),
        follow: false,
        previous,
        timestamps: false,
        tail_lines: None,
        limit_bytes: None,
        since_seconds: None,
        since_time: None,
    }
}

#[test]
fn the_right_attempt_is_chosen_and_errors_read_as_kubelets() {
    let mut pod = Object::empty(kind::find("", "Pod").unwrap(), "default", "web");
    pod.metadata_mut().insert("uid".into(), "u".into());
    pod.value_mut()["spec"] = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
    let mut history = PodHistory::default();
    let ran = ContainerHistory { attempt: Some(2), ..ContainerHistory::default() };
    history.containers.insert("a".into(), ran);
    let first = ContainerHistory {
        attempt: Some(0),
        last_exit: Some(Exit::unseen(None, "")),
        last_exit_attempt: Some(0),
        ..ContainerHistory::default()
    };
    history.containers.insert("i".into(), first);
    let chosen = |container: &str, previous: bool| {
        choose(&pod, Some(&history), &request(container, previous))
            .map(|target| target.attempt)
            .map_err(|error| (error.reason.code(), error.message))
    };
    assert_eq!(chosen("a", false), Ok(2));
    assert_eq!(chosen("a", true), Ok(1));
    assert_eq!(chosen("i", true), Ok(0), "it waits for its restart: its only run is the previous one");
    for (container, said) in [
        ("", "a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [i]"),
        ("c", "container c is not valid for pod web"),
        ("b", "container \"b\" in pod \"web\" is waiting to start: ContainerCreating"),
    ] {
        assert_eq!(chosen(container, false), Err((400, said.to_owned())));
    }
    history.terminal_phase = Some("Succeeded".into());
    let error = choose(&pod, Some(&history), &request("i", true)).unwrap_err();
    assert_eq!(error.message, "previous terminated container \"i\" in pod \"web\" not found");
}

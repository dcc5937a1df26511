//! `flotilla demo --yes`: what a newcomer runs first.

use std::process::{Command, Stdio};

use crate::BINARY;

#[test]
fn the_demo_observes_every_step_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(BINARY)
        .args(["demo", "--yes"])
        .env("TMPDIR", folder.path())
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("seen: SIZE=large everywhere, COLOUR=red on pump-3 alone"), "{text}");
    assert!(text.ends_with("nothing is left behind\n"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files were left behind");
    let left = flotilla_tests::process::table();
    let left: Vec<_> = left.iter().filter(|row| row.command.contains(&*folder.path().to_string_lossy())).collect();
    assert!(left.is_empty(), "processes were left behind: {left:?}");
}

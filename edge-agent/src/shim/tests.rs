use super::files::{self, ShimFile};
use super::proc_table::{self, Family};
use super::protocol::{Answer, Request};

/// Every version ever shipped is adopted: this is the first.
#[test]
fn the_first_format_can_be_read_for_ever() {
    let text = r#"{"format":1,"revision":3,"boot":"b","shim":{"pid":7,"startTicks":8},
        "sandbox":{"uid":"u","namespace":"default","name":"web","attempt":1,"graceSeconds":30},"createdAt":1000,
        "containers":{"a":{"attempt":2,"digest":"1:x","startedAt":2000,"process":{"pid":9,"startTicks":10},"stopping":false},
        "b":{"attempt":0,"digest":"1:y","startedAt":2000,"exit":{"code":137,"signal":9,"reason":"Error","startedAt":2000,
        "finishedAt":3000}}},"later":true}"#;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(files::state_path(folder.path()), text).unwrap();
    let state = files::read_state(folder.path()).unwrap();
    assert_eq!((state.sandbox.attempt, state.containers["a"].process.unwrap().start_ticks), (1, 10));
    assert_eq!(state.containers["b"].exit.as_ref().unwrap().signal, Some(9));
    // What is written today reads the same tomorrow.
    let again: ShimFile = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    assert_eq!(again, state);
    std::fs::write(files::state_path(folder.path()), text.replace("\"format\":1", "\"format\":99")).unwrap();
    assert!(files::read_state(folder.path()).unwrap_err().to_string().contains("format 99 is newer"));
}

#[test]
fn requests_of_the_first_protocol_are_understood() {
    let stop: Request = serde_json::from_str(r#"{"command":"stop","container":"a","attempt":1,"graceMs":5}"#).unwrap();
    assert_eq!(stop, Request::Stop { container: "a".into(), attempt: 1, grace_ms: 5 });
    for (text, name) in [("status", "status"), ("watch", "watch"), ("shutdown", "shutdown")] {
        let request: Request = serde_json::from_str(&format!("{{\"command\":\"{text}\"}}")).unwrap();
        assert_eq!(request.name(), name);
    }
    assert!(serde_json::from_str::<Request>(r#"{"command":"dance"}"#).is_err());
    assert_eq!(serde_json::from_str::<Answer>("{}").unwrap(), Answer::default());
}

#[test]
fn names_that_would_lead_elsewhere_are_no_directories() {
    for bad in ["", ".", "..", "a/b", "a.b", "-a", "a\0", "\u{e9}", &"x".repeat(254)] {
        assert!(!files::is_directory_name(bad), "{bad:?}");
    }
    assert!(files::is_directory_name("0b3e-app"));
}

#[test]
fn attempts_that_are_too_old_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    std::fs::create_dir(&app).unwrap();
    for name in ["3.log", "3.log.1", "3.exit.json", "4.log", "12.log", "notes"] {
        std::fs::write(app.join(name), "").unwrap();
    }
    files::forget_attempts(folder.path(), "app", 4);
    let mut left: Vec<_> = std::fs::read_dir(&app).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["12.log", "4.log", "notes"]);
}

#[test]
fn a_process_is_told_from_a_later_one_with_its_pid() {
    let me = proc_table::identify(i32::try_from(std::process::id()).unwrap()).unwrap();
    assert!(proc_table::runs(me));
    assert!(!proc_table::runs(files::ProcessId { start_ticks: me.start_ticks + 1, ..me }));
    assert_eq!(proc_table::kill_family(&Family { mark_prefix: "no such pod/", group: None, parent: None }), 0);
}

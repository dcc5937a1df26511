use flotilla_manifests::kind;
use http::Method;

use super::*;
use crate::route::Route;

fn request(query: &str) -> ResourceRequest {
    match Route::parse(&Method::GET, "/api/v1/namespaces/default/pods", query, kind::ALL).unwrap() {
        Route::Resource(request) => *request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn where_watches_begin() {
    let check = |query: &str, expected: Option<Start>| {
        assert_eq!(Start::of(&request(&format!("watch=1&{query}"))).ok(), expected, "{query}");
    };
    check("", Some(Start::Listed { not_older_than: 0 }));
    check("resourceVersion=0", Some(Start::Listed { not_older_than: 0 }));
    check("resourceVersion=7", Some(Start::After(7)));
    let list = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    check(list, Some(Start::Listed { not_older_than: 0 }));
    check(&format!("{list}&resourceVersion=7"), Some(Start::Listed { not_older_than: 7 }));
    check("sendInitialEvents=false&resourceVersionMatch=NotOlderThan", Some(Start::Now));
    check("sendInitialEvents=true", None);
    check("resourceVersion=7&resourceVersionMatch=Exact", None);
}

#[test]
fn list_versions() {
    use {ResourceVersion::*, VersionMatch as Match};
    let check = |wanted, matching, expected: Option<u16>| {
        let refused = check_list_version(wanted, matching, 10).err().map(|error| error.reason.code());
        assert_eq!(refused, expected, "{wanted:?} {matching:?}");
    };
    check(Unset, Match::Unset, None);
    check(Unset, Match::Exact, Some(400));
    check(Any, Match::NotOlderThan, None);
    check(Any, Match::Exact, Some(400));
    check(At(9), Match::Unset, None);
    check(At(10), Match::Exact, None);
    check(At(11), Match::NotOlderThan, Some(504));
    let error = check_list_version(At(11), Match::Unset, 10).unwrap_err();
    assert_eq!(error.causes[0].reason, "ResourceVersionTooLarge");
    assert_eq!(error.retry_after_seconds, Some(1));
}

#[test]
fn log_options() {
    let log = log_request(&request("container=a&follow=true&tailLines=5&timestamps=true&sinceSeconds=60&limitBytes=9"))
        .unwrap();
    assert_eq!((log.container.as_str(), log.follow, log.previous, log.timestamps), ("a", true, false, true));
    assert_eq!((log.tail_lines, log.since_seconds, log.limit_bytes), (Some(5), Some(60), Some(9)));
    assert_eq!(log_request(&request("tailLines=-1")).unwrap_err().reason, Reason::BadRequest);
    assert_eq!(log_request(&request("sinceTime=yesterday")).unwrap_err().reason, Reason::BadRequest);
    let both = "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z";
    assert_eq!(log_request(&request(both)).unwrap_err().reason, Reason::BadRequest);
}

use flotilla_manifests::kind;

use super::*;

fn parse(method: &str, url: &str) -> Result<Route, ApiError> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    Route::parse(&Method::from_bytes(method.as_bytes()).unwrap(), path, query, kind::ALL)
}

/// `verb plural[.group] namespace/name[/subresource]`, or what else it is, or the code of the refusal.
fn words(method: &str, url: &str) -> String {
    match parse(method, url) {
        Ok(Route::Resource(request)) => {
            let ResourceRequest { verb, kind, namespace, name, subresource, .. } = *request;
            let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
            let subresource = subresource.map_or(String::new(), |one| format!("/{}", one.as_str()));
            format!("{} {}{group} {namespace}/{name}{subresource}", verb.as_str(), kind.plural)
        }
        Ok(Route::Discovery(discovery)) => format!("{discovery:?}"),
        Ok(Route::OpenApi(document)) => format!("{document:?}"),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.reason.code().to_string(),
    }
}

#[test]
fn urls() {
    let check = |method: &str, url: &str, expected: &str| assert_eq!(words(method, url), expected, "{method} {url}");
    check("GET", "/livez?verbose", "Probe(Livez)");
    check("GET", "/readyz/", "Probe(Readyz)");
    check("GET", "/version", "Version");
    check("POST", "/version", "405");
    check("GET", "/api", "Core");
    check("GET", "/apis", "Groups");
    check("GET", "/apis/apps", "Group(\"apps\")");
    check("GET", "/api/v1", "Resources { group: \"\", version: \"v1\" }");
    check("GET", "/apis/apps/v1", "Resources { group: \"apps\", version: \"v1\" }");
    check("GET", "/openapi/v3", "Index");
    check("GET", "/openapi/v3/apis/apps/v1?hash=X", "Document { group: \"apps\", version: \"v1\" }");
    check("GET", "/openapi/v2", "Old");
    check("GET", "/openapi/v1", "404");
    check("GET", "/api/v1/pods", "list pods /");
    check("GET", "/api/v1/namespaces/default/pods", "list pods default/");
    check("GET", "/api/v1/namespaces/default/pods?watch=true", "watch pods default/");
    check("GET", "/api/v1/namespaces/default/pods?watch=0", "list pods default/");
    check("GET", "/api/v1/namespaces/default/pods/web%2D1", "get pods default/web-1");
    check("GET", "/api/v1/namespaces/default/pods/web/log?follow=1", "get pods default/web/log");
    check("PUT", "/api/v1/namespaces/default/pods/web/log", "405");
    check("PATCH", "/api/v1/namespaces/default/pods/web/status", "patch pods default/web/status");
    check("GET", "/api/v1/namespaces", "list namespaces /");
    check("GET", "/api/v1/namespaces/default", "get namespaces /default");
    check("PUT", "/api/v1/namespaces/default/status", "update namespaces /default/status");
    check("POST", "/api/v1/namespaces", "create namespaces /");
    check("POST", "/api/v1/namespaces/default", "405");
    check("DELETE", "/api/v1/namespaces/default/configmaps", "deletecollection configmaps default/");
    check("DELETE", "/api/v1/nodes/n1", "delete nodes /n1");
    check("GET", "/apis/apps/v1/namespaces/default/deployments/web/scale", "get deployments.apps default/web/scale");
    check("GET", "/apis/apps/v1/namespaces/default/daemonsets/web/scale", "404");
    check("POST", "/apis/apps/v1/deployments", "405");
    check("GET", "/apis/apps/v1/deployments/web", "404");
    check("GET", "/api/v1/namespaces/default/nodes/n1", "404");
    check("GET", "/apis/apps/v1beta1/deployments", "404");
    check("GET", "/apis/flotilla.dev/v1alpha1/overrides", "list overrides.flotilla.dev /");
    check("GET", "/api/v1/services", "404");
    check("GET", "/api/v1/namespaces/../pods", "404");
    check("GET", "/api/v1/namespaces/a%2Fb/pods", "404");
    check("GET", "/api/v1/pods/%zz", "404");
    check("GET", "/", "404");
    check("GET", "", "404");
    check("TRACE", "/api/v1/pods", "405");
    check("GET", &format!("/api/v1/pods?labelSelector={}", "x".repeat(URL_BYTES_MAX)), "413");
}

fn options(query: &str) -> Result<Options, ApiError> {
    match parse("GET", &format!("/api/v1/pods?{query}"))? {
        Route::Resource(request) => Ok(request.options),
        other => panic!("{other:?}"),
    }
}

#[test]
fn parameters() {
    let both = options("labelSelector=app%3Dweb%2Ctier+in+(a)&fieldSelector=spec.nodeName%3Dn1").unwrap();
    assert_eq!(
        (both.label_selector.as_str(), both.field_selector.as_str()),
        ("app=web,tier in (a)", "spec.nodeName=n1")
    );
    assert_eq!(options("").unwrap().resource_version, ResourceVersion::Unset);
    assert_eq!(options("resourceVersion=0").unwrap().resource_version, ResourceVersion::Any);
    assert_eq!(options("resourceVersion=17").unwrap().resource_version, ResourceVersion::At(17));
    let watch = options("watch=1&sendInitialEvents=true&allowWatchBookmarks=true&timeoutSeconds=9").unwrap().watch;
    assert_eq!(watch, WatchOptions { bookmarks: true, timeout_seconds: Some(9), initial_events: Some(true) });
    assert_eq!(options("dryRun=All").unwrap().dry_run, Some(DryRun::All));
    assert_eq!(options("fieldValidation=Strict").unwrap().field_validation, FieldValidation::Strict);
    for bad in [
        "resourceVersion=x",
        "resourceVersion=01",
        "resourceVersion=-1",
        "resourceVersion=9223372036854775808",
        "resourceVersionMatch=Newest",
        "dryRun=Some",
        "fieldValidation=Loud",
        "watch=perhaps",
        "timeoutSeconds=-3",
        "labelSelector=%ff",
        "includeObject=All",
    ] {
        assert_eq!(options(bad).unwrap_err().reason, Reason::BadRequest, "{bad}");
    }
}

#[test]
fn a_watch_of_one_object_selects_its_name() {
    let route =
        parse("GET", "/api/v1/namespaces/default/pods/web?watch=true&fieldSelector=spec.nodeName%3Dn1").unwrap();
    let Route::Resource(request) = route else { panic!("{route:?}") };
    assert_eq!(request.verb, Verb::Watch);
    assert_eq!(request.options.field_selector, "spec.nodeName=n1,metadata.name=web");
}

#[test]
fn only_served_kinds_have_urls() {
    let served: &[KindRef] = &[&kind::POD];
    assert!(Route::parse(&Method::GET, "/api/v1/pods", "", served).is_ok());
    let error = Route::parse(&Method::GET, "/api/v1/nodes", "", served).unwrap_err();
    assert_eq!(error.reason, Reason::NotFound);
}

proptest::proptest! {
    /// Whatever a client sends as URL or header is answered or refused; nothing panics.
    #[test]
    fn no_request_line_panics(path in "/(api|apis|openapi|namespaces|pods|v1|apps|log|%|%2|%ff|[a-z\u{e9}./]|/){0,12}", query in ".{0,60}", accept in ".{0,80}") {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            drop(Route::parse(&method, &path, &query, kind::ALL));
        }
        drop(crate::negotiate::Form::of(Some(&accept), crate::negotiate::Count::One));
        drop(crate::negotiate::DiscoveryForm::of(Some(&accept)));
        drop(crate::negotiate::PatchType::of(Some(&accept)));
    }

    /// What is escaped in a query is read back as it was.
    #[test]
    fn escapes_are_undone(text in "\\PC{0,40}") {
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let query = Query::parse(&format!("other=1&labelSelector={escaped}")).unwrap();
        proptest::prop_assert_eq!(query.text("labelSelector"), text);
    }
}

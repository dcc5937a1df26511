//! Pages of a list: `limit`, `continue`, and where one page ends and the next begins. Pure.
//!
//! Owns the token: the version the list stands at, the last key given out, and a check that it belongs to this very question.
//! Every page shows the list as it stood when the first was given; a token whose version is no longer kept gets 410 with a fresh one,
//! with which a client may go on with what is there now. Start at [`Token`] and [`cut`].

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::object::{Object, ObjectKey};
use serde::{Deserialize, Serialize};

use crate::openapi::hash_text;
use crate::route::ResourceRequest;
use crate::watch::Filter;

const FORM: &str = "flotilla/1";
/// A longer text is no token of ours.
const TOKEN_BYTES_MAX: usize = 2048;

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The version of the first page; `None` goes on with what is there now.
    pub(crate) version: Option<u64>,
    /// The last object of the page before.
    pub(crate) after: (String, String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    v: String,
    rv: u64,
    namespace: String,
    name: String,
    /// Which list it belongs to.
    of: String,
}

impl Token {
    /// Reads the `continue` parameter of a request.
    ///
    /// # Errors
    /// 400 for a token that was not made for this list.
    pub(crate) fn parse(text: &str, request: &ResourceRequest) -> Result<Self, ApiError> {
        let bad = |why: &str| ApiError::of(Reason::BadRequest, format!("continue key is not valid: {why}"));
        if text.len() > TOKEN_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad("it was not made by this server"))?;
        let wire: Wire = serde_json::from_slice(&bytes).map_err(|_| bad("it was not made by this server"))?;
        if wire.v != FORM {
            return Err(bad("it was made by another version of this server"));
        }
        if wire.of != question(request) {
            return Err(bad("it belongs to a list of another kind, namespace or selector"));
        }
        Ok(Self { version: Some(wire.rv).filter(|version| *version > 0), after: (wire.namespace, wire.name) })
    }

    pub(crate) fn text(&self, request: &ResourceRequest) -> String {
        let (namespace, name) = self.after.clone();
        let wire = Wire { v: FORM.to_owned(), rv: self.version.unwrap_or(0), namespace, name, of: question(request) };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).unwrap_or_default())
    }

    /// 410 with a token that goes on after the same object in what is there now.
    pub(crate) fn expired(&self, request: &ResourceRequest) -> ApiError {
        let mut error = ApiError::of(
            Reason::Expired,
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
             the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
             Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
             deleted between the time the first chunk was returned and now may show up in the list.",
        );
        error.continue_token = Some(Self { version: None, after: self.after.clone() }.text(request));
        error
    }

    fn is_before(&self, object: &Object) -> bool {
        (self.after.0.as_str(), self.after.1.as_str()) < (object.namespace(), object.name())
    }
}

/// A list's kind, namespace and selectors in one word.
fn question(request: &ResourceRequest) -> String {
    let options = &request.options;
    let (kind, selectors) = (request.kind, (&options.label_selector, &options.field_selector));
    hash_text(format!("{:?}", (kind.group, kind.plural, &request.namespace, selectors)).as_bytes())
}

/// One page.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Page {
    pub(crate) items: Vec<Arc<Object>>,
    /// The last object, when more follow.
    pub(crate) more_after: Option<(String, String)>,
    /// How many follow; known without selectors only.
    pub(crate) remaining: Option<usize>,
}

/// At most `limit` of the items (in key order) that follow the token and match. `None` is no limit.
pub(crate) fn cut(items: Vec<Arc<Object>>, token: Option<&Token>, filter: &Filter, limit: Option<usize>) -> Page {
    let start = token.map_or(0, |token| items.partition_point(|item| !token.is_before(item)));
    let limit = limit.unwrap_or(usize::MAX);
    let total = items.len();
    let mut rest = items.into_iter().enumerate().skip(start).filter(|(_, item)| filter.matches(item));
    let mut page = Vec::new();
    let mut last = start;
    for (index, item) in rest.by_ref().take(limit) {
        last = index;
        page.push(item);
    }
    let more = page.len() == limit && rest.next().is_some();
    let last_key = page.last().map(|item| (item.namespace().to_owned(), item.name().to_owned()));
    Page {
        more_after: last_key.filter(|_| more),
        remaining: (more && filter.is_everything()).then(|| total - last - 1),
        items: page,
    }
}

/// A list as it was before some changes: `undone` holds, newest first, each changed key and what was there before.
pub fn rewound(
    items: Vec<Arc<Object>>,
    undone: impl Iterator<Item = (ObjectKey, Option<Arc<Object>>)>,
) -> Vec<Arc<Object>> {
    let mut undone = undone.peekable();
    if undone.peek().is_none() {
        return items;
    }
    let mut by_key: BTreeMap<ObjectKey, Arc<Object>> = items.into_iter().map(|item| (item.key(), item)).collect();
    for (key, before) in undone {
        match before {
            Some(before) => drop(by_key.insert(key, before)),
            None => drop(by_key.remove(&key)),
        }
    }
    by_key.into_values().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::kind;
    use http::Method;

    use super::*;
    use crate::route::Route;

    fn request(path: &str) -> ResourceRequest {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        match Route::parse(&Method::GET, path, query, kind::ALL).unwrap() {
            Route::Resource(request) => *request,
            other => panic!("{other:?}"),
        }
    }

    fn maps(names: &[&str]) -> Vec<Arc<Object>> {
        names.iter().map(|name| Arc::new(Object::empty(&kind::CONFIG_MAP, "default", name))).collect()
    }

    #[test]
    fn a_token_belongs_to_one_question() {
        let list = request("/api/v1/configmaps?labelSelector=a");
        let token = Token { version: Some(7), after: ("default".into(), "web".into()) };
        let text = token.text(&list);
        assert_eq!(Token::parse(&text, &list).unwrap(), token);
        for other in
            ["/api/v1/secrets?labelSelector=a", "/api/v1/configmaps", "/api/v1/namespaces/a/configmaps?labelSelector=a"]
        {
            assert_eq!(Token::parse(&text, &request(other)).unwrap_err().reason, Reason::BadRequest, "{other}");
        }
        for bad in ["x", "e30", "", &"A".repeat(5000)] {
            assert!(Token::parse(bad, &list).is_err(), "{bad}");
        }
        let expired = token.expired(&list);
        assert_eq!(expired.reason, Reason::Expired);
        let fresh = Token::parse(expired.continue_token.as_deref().unwrap(), &list).unwrap();
        assert_eq!(fresh, Token { version: None, ..token });
        assert_eq!(expired.to_status()["metadata"]["continue"], expired.continue_token.unwrap());
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let items = maps(&["a", "b", "c", "d", "e"]);
        let everything = Filter::parse("", "", &kind::CONFIG_MAP).unwrap();
        for limit in 1..7 {
            let mut seen = Vec::new();
            let mut token = None;
            loop {
                let page = cut(items.clone(), token.as_ref(), &everything, Some(limit));
                assert!(page.items.len() <= limit);
                seen.extend(page.items.iter().map(|item| item.name().to_owned()));
                assert_eq!(page.remaining, page.more_after.as_ref().map(|_| 5 - seen.len()));
                let Some(after) = page.more_after else { break };
                token = Some(Token { version: Some(1), after });
            }
            assert_eq!(seen, ["a", "b", "c", "d", "e"], "limit {limit}");
        }
        let some = Filter::parse("", "metadata.name!=b", &kind::CONFIG_MAP).unwrap();
        let page = cut(items, None, &some, Some(2));
        assert_eq!((page.items.len(), page.items[1].name(), page.remaining), (2, "c", None));
        assert_eq!(page.more_after.unwrap().1, "c");
    }

    #[test]
    fn a_list_goes_back_to_what_it_was() {
        let now = maps(&["b", "c"]);
        let key = |name: &str| ObjectKey::of(&kind::CONFIG_MAP, "default", name);
        // Newest first: c was made, a was removed, b was changed.
        let mut before = Object::empty(&kind::CONFIG_MAP, "default", "b");
        before.set_resource_version(3);
        let undone = [(key("c"), None), (key("a"), Some(maps(&["a"]).remove(0))), (key("b"), Some(Arc::new(before)))];
        let was = rewound(now, undone.into_iter());
        let names: Vec<(&str, u64)> = was.iter().map(|item| (item.name(), item.resource_version())).collect();
        assert_eq!(names, [("a", 0), ("b", 3)]);
    }
}

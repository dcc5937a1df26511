//! Watches: from the backend's events to the lines of a watch. Pure.
//!
//! Owns selectors' entries and exits, bookmarks, and the three shapes of an event's object; refuses channels and timers (those are
//! the front's `stream`). Start at [`Lines`].

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind::KindRef;
use flotilla_manifests::label::Selector;
use flotilla_manifests::label::field::FieldSelector;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use serde_json::{Value, json};

use crate::backend::WatchEvent;
use crate::negotiate::Shape;
use crate::reply::write_json;
use crate::route::IncludeObject;
use crate::table::{Columns, Partial};

/// Which objects a request wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    pub labels: Selector,
    pub fields: FieldSelector,
}

impl Filter {
    /// # Errors
    /// 400 for a selector that cannot be read.
    pub fn parse(labels: &str, fields: &str, kind: KindRef) -> Result<Self, ApiError> {
        let labels = if labels.is_empty() { Selector::everything() } else { Selector::parse(labels)? };
        Ok(Self { labels, fields: FieldSelector::parse(fields, kind)? })
    }

    pub fn is_everything(&self) -> bool {
        self.labels == Selector::everything() && self.fields.is_everything()
    }

    pub fn matches(&self, object: &Object) -> bool {
        self.fields.matches(object) && self.labels.matches_object(object)
    }
}

/// Writes one watch's lines.
#[derive(Debug)]
pub struct Lines {
    kind: KindRef,
    shape: Shape,
    filter: Filter,
    include: IncludeObject,
    /// The newest version the watcher has been brought to, shown by bookmarks.
    version: u64,
    /// Columns go out with the first Table only.
    columns_sent: bool,
}

/// Whether a watch goes on after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Continue,
    End,
}

impl Lines {
    /// `version`: where the watch starts.
    pub fn of(kind: KindRef, shape: Shape, filter: Filter, include: IncludeObject, version: u64) -> Self {
        Self { kind, shape, filter, include, version, columns_sent: false }
    }

    /// A synthetic `ADDED` of an object that was there at the start.
    pub fn initial(&mut self, object: &Object, now: Timestamp, out: &mut Vec<u8>) {
        if self.filter.matches(object) {
            self.write("ADDED", object, now, out);
        }
    }

    /// The lines of one event.
    pub fn event(&mut self, event: &WatchEvent, now: Timestamp, out: &mut Vec<u8>) -> Flow {
        match event {
            WatchEvent::Added(object) => {
                self.reached(object.resource_version());
                self.initial(object, now, out);
            }
            WatchEvent::Modified { previous, object } => {
                self.reached(object.resource_version());
                match (self.filter.matches(previous), self.filter.matches(object)) {
                    (true, true) => self.write("MODIFIED", object, now, out),
                    (false, true) => self.write("ADDED", object, now, out),
                    (true, false) => {
                        // Gone from the watcher's sight: as it last saw it, at the version at which it left.
                        let mut left = Object::clone(previous);
                        left.set_resource_version(object.resource_version());
                        self.write("DELETED", &left, now, out);
                    }
                    (false, false) => {}
                }
            }
            WatchEvent::Deleted(object) => {
                self.reached(object.resource_version());
                if self.filter.matches(object) {
                    self.write("DELETED", object, now, out);
                }
            }
            WatchEvent::Progress(version) => self.reached(*version),
            WatchEvent::Expired => {
                let error = ApiError::of(
                    Reason::Expired,
                    format!("too old resource version: {} (the watcher fell behind; list again)", self.version),
                );
                line("ERROR", &error.to_status(), out);
                return Flow::End;
            }
        }
        Flow::Continue
    }

    /// A `BOOKMARK` at the newest version reached.
    pub fn bookmark(&self, out: &mut Vec<u8>) {
        self.write_bookmark(json!({"resourceVersion": self.version.to_string()}), out);
    }

    /// The bookmark that ends the initial events of a WatchList (KEP-3157).
    pub fn initial_events_end(&self, out: &mut Vec<u8>) {
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        self.write_bookmark(json!({"resourceVersion": self.version.to_string(), "annotations": annotations}), out);
    }

    fn write_bookmark(&self, metadata: Value, out: &mut Vec<u8>) {
        let object = match self.shape {
            Shape::Whole => {
                json!({"kind": self.kind.name, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Shape::Partial(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata})
            }
            Shape::Table(version) => json!({
                "kind": "Table", "apiVersion": version.api_version(), "metadata": metadata,
                "columnDefinitions": null, "rows": [],
            }),
        };
        line("BOOKMARK", &object, out);
    }

    fn reached(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    fn write(&mut self, word: &str, object: &Object, now: Timestamp, out: &mut Vec<u8>) {
        match self.shape {
            Shape::Whole => line(word, object.value(), out),
            Shape::Partial(version) => line(word, &Partial::of(object, version), out),
            Shape::Table(version) => {
                let columns = Columns::of(self.kind);
                let definitions = if self.columns_sent { Value::Null } else { columns.definitions() };
                self.columns_sent = true;
                let table = json!({
                    "kind": "Table", "apiVersion": version.api_version(),
                    "metadata": {"resourceVersion": object.resource_version().to_string()},
                    "columnDefinitions": definitions,
                    "rows": [columns.row(object, now, version, self.include)],
                });
                line(word, &table, out);
            }
        }
    }
}

fn line(word: &str, object: &impl serde::Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(word.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    write_json(object, out);
    out.extend_from_slice(b"}\n");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use flotilla_manifests::kind;

    use super::*;
    use crate::negotiate::MetaVersion;

    fn pod(version: u64, app: &str) -> Arc<Object> {
        let mut object = Object::empty(&kind::POD, "default", "web");
        object.metadata_mut().insert("labels".into(), json!({"app": app}));
        object.set_resource_version(version);
        Arc::new(object)
    }

    fn lines(shape: Shape) -> Lines {
        let filter = Filter::parse("app=web", "", &kind::POD).unwrap();
        Lines::of(&kind::POD, shape, filter, IncludeObject::Metadata, 10)
    }

    fn run(lines: &mut Lines, event: &WatchEvent) -> Vec<(String, Value)> {
        let mut out = Vec::new();
        lines.event(event, Timestamp(0), &mut out);
        let values = String::from_utf8(out).unwrap();
        values
            .lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line).unwrap();
                (value["type"].as_str().unwrap().to_owned(), value["object"].clone())
            })
            .collect()
    }

    #[test]
    fn selectors_turn_changes_into_entries_and_exits() {
        let check = |before: &str, after: &str, expected: Option<&str>| {
            let event = WatchEvent::Modified { previous: pod(11, before), object: pod(12, after) };
            let seen = run(&mut lines(Shape::Whole), &event);
            assert_eq!(seen.first().map(|(word, _)| word.as_str()), expected, "{before} -> {after}");
            for (word, object) in &seen {
                assert_eq!(object["metadata"]["resourceVersion"], "12", "{word}");
            }
            seen
        };
        check("web", "web", Some("MODIFIED"));
        check("other", "web", Some("ADDED"));
        check("other", "another", None);
        let left = check("web", "other", Some("DELETED"));
        assert_eq!(left[0].1["metadata"]["labels"]["app"], "web", "an exit shows what the watcher saw last");
        assert!(run(&mut lines(Shape::Whole), &WatchEvent::Deleted(pod(12, "other"))).is_empty());
    }

    #[test]
    fn bookmarks_stand_at_what_was_reached_though_nothing_was_shown() {
        let mut lines = lines(Shape::Whole);
        run(&mut lines, &WatchEvent::Added(pod(20, "other")));
        run(&mut lines, &WatchEvent::Progress(15));
        let mut out = Vec::new();
        lines.bookmark(&mut out);
        let value: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            value,
            json!({"type": "BOOKMARK", "object":
            {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "20"}}})
        );
        out.clear();
        lines.initial_events_end(&mut out);
        let value: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    }

    #[test]
    fn tables_send_their_columns_once() {
        let mut lines = lines(Shape::Table(MetaVersion::V1));
        let first = run(&mut lines, &WatchEvent::Added(pod(11, "web")));
        let second = run(&mut lines, &WatchEvent::Deleted(pod(12, "web")));
        assert_eq!(first[0].1["columnDefinitions"][0]["name"], "Name");
        assert_eq!(second[0].1["columnDefinitions"], Value::Null);
        assert_eq!(second[0].1["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }

    #[test]
    fn a_watcher_that_fell_behind_is_told_and_ended() {
        let mut out = Vec::new();
        assert_eq!(lines(Shape::Whole).event(&WatchEvent::Expired, Timestamp(0), &mut out), Flow::End);
        let value: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["type"], "ERROR");
        assert_eq!(value["object"]["code"], 410);
        assert_eq!(value["object"]["reason"], "Expired");
    }
}

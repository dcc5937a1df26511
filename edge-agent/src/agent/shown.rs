//! Objects as the local API shows them: what is known of each, with what this device adds.
//!
//! Most of what a pass shows is as it was, and to make, compare and drop all of it again would be most of the pass. Owns which object has
//! to be made anew; refuses to say what is added to it ([`show`](super::Agent::show) does). Start reading at [`Showing::put`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use serde_json::Value;

use crate::view::LocalView;

/// What this device adds to an object.
#[derive(Debug, Default)]
pub(super) struct Added<'a> {
    pub(super) status: Option<Cow<'a, Value>>,
    pub(super) created: Option<Timestamp>,
    pub(super) annotations: Vec<(&'static str, Cow<'a, str>)>,
}

/// What each object was made from that the view holds now: as many as there are.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    made: BTreeMap<ObjectKey, (Arc<Object>, Made)>,
}

/// What was added to an object that is shown, but for its status, the largest part: that stands in the object.
#[derive(Debug)]
struct Made {
    with_status: bool,
    created: Option<Timestamp>,
    annotations: Vec<(&'static str, String)>,
}

/// All that is to be shown, in the making.
pub(super) struct Showing<'a> {
    view: &'a LocalView,
    before: Shown,
    now: &'a mut Shown,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
}

impl Shown {
    /// `view` holds what was put at the last time.
    pub(super) fn begin<'a>(&'a mut self, view: &'a LocalView) -> Showing<'a> {
        let before = std::mem::take(self);
        Showing { view, before, now: self, objects: BTreeMap::new() }
    }
}

impl Showing<'_> {
    /// Shows an object. What was made from the very same is taken from the view.
    pub(super) fn put(&mut self, key: ObjectKey, object: &Arc<Object>, added: Added<'_>) {
        let known = self.before.made.remove(&key).zip(self.view.object(&key));
        let same = known.filter(|((base, made), shown)| Arc::ptr_eq(base, object) && added.is_in(made, shown));
        let (made, shown) = match same {
            Some(known) => known,
            None => {
                let shown = Arc::new(added.on(object));
                ((Arc::clone(object), added.made()), shown)
            }
        };
        self.now.made.insert(key.clone(), made);
        self.objects.insert(key, shown);
    }

    pub(super) fn end(self) -> BTreeMap<ObjectKey, Arc<Object>> {
        self.objects
    }
}

impl Added<'_> {
    fn on(&self, object: &Object) -> Object {
        let mut shown = object.clone();
        if let Some(status) = &self.status {
            shown.value_mut()["status"] = Value::clone(status);
        }
        if let Some(created) = self.created {
            shown.metadata_mut().insert("creationTimestamp".into(), created.to_rfc3339().into());
        }
        for (name, text) in &self.annotations {
            shown.set_annotation(name, text);
        }
        shown
    }

    /// Whether an object that was made is what this would make of the same.
    fn is_in(&self, made: &Made, shown: &Object) -> bool {
        let status = match self.status.as_deref() {
            Some(status) => made.with_status && shown.status() == Some(status),
            None => !made.with_status,
        };
        let annotations = || self.annotations.iter().map(|(name, text)| (*name, text.as_ref()));
        let annotated = || made.annotations.iter().map(|(name, text)| (*name, text.as_str()));
        status && self.created == made.created && annotations().eq(annotated())
    }

    fn made(self) -> Made {
        Made {
            with_status: self.status.is_some(),
            created: self.created,
            annotations: self.annotations.into_iter().map(|(name, text)| (name, text.into_owned())).collect(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::kind;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_made_from_the_same_is_taken_from_the_view_and_everything_else_is_made_anew() {
        let (mut view, mut shown) = (LocalView::starting_above(0), Shown::default());
        let mut pod = Object::empty(&kind::POD, "shop", "web");
        pod.metadata_mut().insert("uid".into(), "u".into());
        let (key, pod) = (pod.key(), Arc::new(pod));
        let mut show = |base: &Arc<Object>, phase: &str, created: Option<Timestamp>, cause: &str| {
            let status = json!({"phase": phase});
            let mut showing = shown.begin(&view);
            let annotations = vec![("cause", cause.into())];
            showing.put(key.clone(), base, Added { status: Some(Cow::Borrowed(&status)), created, annotations });
            let objects = showing.end();
            let object = Arc::clone(&objects[&key]);
            let changes = view.replace(objects, &[]).len();
            assert_eq!(object.text("/status/phase"), phase);
            assert_eq!(object.creation_timestamp(), created);
            assert_eq!(object.annotation("cause"), Some(cause));
            (view.object(&key).unwrap(), changes)
        };
        let (first, changes) = show(&pod, "Pending", None, "a");
        assert_eq!(changes, 1);
        let (again, changes) = show(&pod, "Pending", None, "a");
        assert!(Arc::ptr_eq(&first, &again) && changes == 0);
        assert_eq!(show(&pod, "Running", None, "a").1, 1, "another status");
        assert_eq!(show(&pod, "Running", Some(Timestamp(1000)), "a").1, 1);
        assert_eq!(show(&pod, "Running", Some(Timestamp(1000)), "b").1, 1, "another annotation");
        let other = Arc::new({
            let mut other = (*pod).clone();
            other.value_mut()["spec"] = json!({"hostname": "h"});
            other
        });
        let (object, changes) = show(&other, "Running", Some(Timestamp(1000)), "b");
        assert_eq!((object.text("/spec/hostname"), changes), ("h", 1), "another base");
    }
}

//! Questions a caller asks about itself: `kubectl auth can-i`, `kubectl auth whoami`. Pure.
//!
//! Owns their names and the documents that answer them; what is allowed comes from [`Authorize`]. They are created and never
//! stored. Start at [`Review::answer`].

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind::{Kind, KindRef, Scope};
use serde_json::{Value, json};

use crate::authorize::{Attributes, Authorize, Decision};
use crate::backend::User;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Review {
    /// May I do this?
    Access,
    /// What may I do?
    Rules,
    /// Who am I?
    Identity,
}

/// The rows of discovery.
pub(crate) static KINDS: [Kind; 3] = [
    row("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview"),
    row("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews", "selfsubjectaccessreview"),
    row("authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews", "selfsubjectrulesreview"),
];

const fn row(group: &'static str, name: &'static str, plural: &'static str, singular: &'static str) -> Kind {
    Kind {
        group,
        version: "v1",
        name,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        scope: Scope::Cluster,
        subresources: &[],
        schema: "",
    }
}

/// Verbs that a rule may hold, as Kubernetes orders them.
const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

impl Review {
    pub(crate) fn of(group: &str, version: &str, plural: &str) -> Option<Self> {
        let row = KINDS.iter().find(|row| (row.group, row.version, row.plural) == (group, version, plural))?;
        match row.name {
            "SelfSubjectReview" => Some(Self::Identity),
            "SelfSubjectAccessReview" => Some(Self::Access),
            _ => Some(Self::Rules),
        }
    }

    fn row(self) -> KindRef {
        match self {
            Self::Identity => &KINDS[0],
            Self::Access => &KINDS[1],
            Self::Rules => &KINDS[2],
        }
    }

    /// The body with its status filled in.
    ///
    /// # Errors
    /// 400 for a body of another kind, or one that asks for nothing.
    pub(crate) fn answer(
        self,
        mut body: Value,
        user: &User,
        authorize: &dyn Authorize,
        kinds: &[KindRef],
    ) -> Result<Value, ApiError> {
        let row = self.row();
        if body["kind"] != row.name || body["apiVersion"] != row.api_version() {
            let message = format!("the body is a {} of {}", row.name, row.api_version());
            return Err(ApiError::of(Reason::BadRequest, message));
        }
        let status = match self {
            Self::Identity => json!({"userInfo": {"username": user.name, "groups": user.groups}}),
            Self::Access => access(&body["spec"], user, authorize)?,
            Self::Rules => {
                let namespace = body.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or("").to_owned();
                rules(&namespace, user, authorize, kinds)
            }
        };
        body["status"] = status;
        Ok(body)
    }
}

fn access(spec: &Value, user: &User, authorize: &dyn Authorize) -> Result<Value, ApiError> {
    let text = |value: &'_ Value, name: &str| value[name].as_str().unwrap_or("").to_owned();
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let (verb, path) = (text(if resource.is_object() { resource } else { other }, "verb"), text(other, "path"));
    let [group, plural, subresource, namespace, name] =
        ["group", "resource", "subresource", "namespace", "name"].map(|field| text(resource, field));
    if resource.is_object() == other.is_object() {
        let message = "exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be given";
        return Err(ApiError::of(Reason::BadRequest, message));
    }
    let attributes = Attributes {
        verb: &verb,
        group: &group,
        resource: &plural,
        subresource: &subresource,
        namespace: &namespace,
        name: &name,
        path: &path,
    };
    Ok(match authorize.authorize(user, &attributes) {
        Decision::Allow => json!({"allowed": true}),
        Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
    })
}

/// One rule for each kind of which something is allowed.
fn rules(namespace: &str, user: &User, authorize: &dyn Authorize, kinds: &[KindRef]) -> Value {
    let allowed = |kind: KindRef, subresource: &str, verb: &str| {
        let attributes = Attributes {
            verb,
            group: kind.group,
            resource: kind.plural,
            subresource,
            namespace: if kind.scope == Scope::Namespaced { namespace } else { "" },
            name: "",
            path: "",
        };
        authorize.authorize(user, &attributes) == Decision::Allow
    };
    let mut rules = Vec::new();
    for kind in kinds {
        for subresource in [""].iter().chain(kind.subresources) {
            let verbs: Vec<&str> = VERBS.into_iter().filter(|verb| allowed(kind, subresource, verb)).collect();
            let resource =
                if subresource.is_empty() { kind.plural.to_owned() } else { format!("{}/{subresource}", kind.plural) };
            if !verbs.is_empty() {
                rules.push(json!({"verbs": verbs, "apiGroups": [kind.group], "resources": [resource]}));
            }
        }
    }
    json!({"resourceRules": rules, "nonResourceRules": [], "incomplete": false})
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::kind;

    use super::*;

    fn reader(_: &User, attributes: &Attributes<'_>) -> Decision {
        if attributes.verb == "get" && attributes.resource == "pods" {
            Decision::Allow
        } else {
            Decision::Deny("only pods may be read".to_owned())
        }
    }

    fn ask(review: Review, spec: Value) -> Result<Value, ApiError> {
        let row = review.row();
        let body = json!({"apiVersion": row.api_version(), "kind": row.name, "spec": spec});
        let user = User { name: "ann".to_owned(), groups: vec!["readers".to_owned()] };
        review.answer(body, &user, &reader, &[&kind::POD, &kind::NODE]).map(|body| body["status"].clone())
    }

    #[test]
    fn what_a_caller_may_do_and_who_it_is() {
        let can = |verb: &str| ask(Review::Access, json!({"resourceAttributes": {"verb": verb, "resource": "pods"}}));
        assert_eq!(can("get").unwrap(), json!({"allowed": true}));
        assert_eq!(can("delete").unwrap()["allowed"], false);
        assert_eq!(ask(Review::Access, json!({})).unwrap_err().reason, Reason::BadRequest);
        let rules = ask(Review::Rules, json!({"namespace": "default"})).unwrap();
        assert_eq!(rules["resourceRules"][0], json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}));
        assert_eq!(
            ask(Review::Identity, Value::Null).unwrap()["userInfo"],
            json!({"username": "ann", "groups": ["readers"]})
        );
        let other = json!({"apiVersion": "v1", "kind": "Pod"});
        let user = User { name: String::new(), groups: Vec::new() };
        assert!(Review::Access.answer(other, &user, &reader, &[]).is_err());
    }
}

//! Who may do what: the question the front asks before every request, and the smallest honest answers.
//!
//! Owns the vocabulary ([`Attributes`], [`Decision`]) and two fixed answers. Refuses roles and bindings: those are the
//! server's owner's, behind [`Authorize`]. Start at [`Authorize`].

use crate::backend::User;

/// What a request wants, in the words of Kubernetes' `SubjectAccessReview`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the HTTP method.
    pub verb: &'a str,
    /// `""` for the core group.
    pub group: &'a str,
    /// Plural name; empty for a request that is not about a resource.
    pub resource: &'a str,
    /// Empty, `status`, `scale`, `log`.
    pub subresource: &'a str,
    /// Empty: cluster scope or all namespaces.
    pub namespace: &'a str,
    /// Empty: a collection.
    pub name: &'a str,
    /// The URL's path.
    pub path: &'a str,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// The reason is shown to the caller.
    Deny(String),
}

/// Decides every request of an authenticated caller. Must not block: it is asked on the connection's task.
pub trait Authorize: Send + Sync + 'static {
    fn authorize(&self, user: &User, attributes: &Attributes<'_>) -> Decision;
}

impl<F> Authorize for F
where
    F: Fn(&User, &Attributes<'_>) -> Decision + Send + Sync + 'static,
{
    fn authorize(&self, user: &User, attributes: &Attributes<'_>) -> Decision {
        self(user, attributes)
    }
}

/// Nobody may do anything: what stands until the owner passes something better.
#[derive(Debug, Clone, Copy, Default)]
pub struct DenyAll;

impl Authorize for DenyAll {
    fn authorize(&self, _user: &User, _attributes: &Attributes<'_>) -> Decision {
        Decision::Deny("no authorizer is set".to_owned())
    }
}

/// Kubernetes' break-glass rule: members of `system:masters` may do everything, others nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemMasters;

/// The group of [`SystemMasters`].
pub const SYSTEM_MASTERS: &str = "system:masters";

impl Authorize for SystemMasters {
    fn authorize(&self, user: &User, _attributes: &Attributes<'_>) -> Decision {
        if user.groups.iter().any(|group| group == SYSTEM_MASTERS) {
            Decision::Allow
        } else {
            Decision::Deny(format!("only members of group {SYSTEM_MASTERS:?} have access"))
        }
    }
}

//! The table of kinds: what exists, how it is named, what may be done to it.

use std::fmt;

/// Whether objects of a kind live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// One row of the table. Compared and ordered by `(group, name)`.
#[derive(Debug)]
pub struct Kind {
    /// `""` for the core group.
    pub group: &'static str,
    pub version: &'static str,
    /// `DaemonSet`
    pub name: &'static str,
    /// `daemonsets`
    pub plural: &'static str,
    /// `daemonset`
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    /// kubectl's groups of kinds, such as `all`.
    pub categories: &'static [&'static str],
    pub scope: Scope,
    /// `status`, `scale`, `log`, `eviction`.
    pub subresources: &'static [&'static str],
    /// Name of the schema in the generated tables.
    pub schema: &'static str,
}

/// A row of the static table; cheap to copy.
pub type KindRef = &'static Kind;

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.name, self.group) == (other.name, other.group)
    }
}
impl Eq for Kind {}
impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Kind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Most that are compared are the same row: keys of one kind, in maps.
        if std::ptr::eq(self, other) {
            return std::cmp::Ordering::Equal;
        }
        (self.group, self.name).cmp(&(other.group, other.name))
    }
}
impl std::hash::Hash for Kind {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.group, self.name).hash(state);
    }
}
impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

macro_rules! kinds {
    ($($constant:ident = $group:literal $version:literal $name:literal $plural:literal $singular:literal [$($short:literal),*] [$($category:literal),*] $scope:ident [$($sub:literal),*] $schema:literal;)*) => {
        $(pub static $constant: Kind = Kind {
            group: $group, version: $version, name: $name, plural: $plural, singular: $singular,
            short_names: &[$($short),*], categories: &[$($category),*], scope: Scope::$scope,
            subresources: &[$($sub),*], schema: $schema,
        };)*
        /// Every kind this build knows.
        pub static ALL: &[KindRef] = &[$(&$constant),*];
    };
}

kinds! {
    NAMESPACE = "" "v1" "Namespace" "namespaces" "namespace" ["ns"] [] Cluster ["status"] "io.k8s.api.core.v1.Namespace";
    NODE = "" "v1" "Node" "nodes" "node" ["no"] [] Cluster ["status"] "io.k8s.api.core.v1.Node";
    POD = "" "v1" "Pod" "pods" "pod" ["po"] ["all"] Namespaced ["status", "log", "eviction"] "io.k8s.api.core.v1.Pod";
    CONFIG_MAP = "" "v1" "ConfigMap" "configmaps" "configmap" ["cm"] [] Namespaced [] "io.k8s.api.core.v1.ConfigMap";
    SECRET = "" "v1" "Secret" "secrets" "secret" [] [] Namespaced [] "io.k8s.api.core.v1.Secret";
    SERVICE_ACCOUNT = "" "v1" "ServiceAccount" "serviceaccounts" "serviceaccount" ["sa"] [] Namespaced [] "io.k8s.api.core.v1.ServiceAccount";
    EVENT = "" "v1" "Event" "events" "event" ["ev"] [] Namespaced [] "io.k8s.api.core.v1.Event";
    DAEMON_SET = "apps" "v1" "DaemonSet" "daemonsets" "daemonset" ["ds"] ["all"] Namespaced ["status"] "io.k8s.api.apps.v1.DaemonSet";
    DEPLOYMENT = "apps" "v1" "Deployment" "deployments" "deployment" ["deploy"] ["all"] Namespaced ["scale", "status"] "io.k8s.api.apps.v1.Deployment";
    REPLICA_SET = "apps" "v1" "ReplicaSet" "replicasets" "replicaset" ["rs"] ["all"] Namespaced ["scale", "status"] "io.k8s.api.apps.v1.ReplicaSet";
    CONTROLLER_REVISION = "apps" "v1" "ControllerRevision" "controllerrevisions" "controllerrevision" [] [] Namespaced [] "io.k8s.api.apps.v1.ControllerRevision";
    RUNTIME_CLASS = "node.k8s.io" "v1" "RuntimeClass" "runtimeclasses" "runtimeclass" [] [] Cluster [] "io.k8s.api.node.v1.RuntimeClass";
    PRIORITY_CLASS = "scheduling.k8s.io" "v1" "PriorityClass" "priorityclasses" "priorityclass" ["pc"] [] Cluster [] "io.k8s.api.scheduling.v1.PriorityClass";
    LEASE = "coordination.k8s.io" "v1" "Lease" "leases" "lease" [] [] Namespaced [] "io.k8s.api.coordination.v1.Lease";
    OVERRIDE = "flotilla.dev" "v1alpha1" "Override" "overrides" "override" ["ovr"] ["flotilla"] Namespaced [] "dev.flotilla.v1alpha1.Override";
}

/// The kind with this group and name.
pub fn find(group: &str, name: &str) -> Option<KindRef> {
    ALL.iter().copied().find(|kind| kind.group == group && kind.name == name)
}

/// The kind with this group and plural resource name.
pub fn find_plural(group: &str, plural: &str) -> Option<KindRef> {
    ALL.iter().copied().find(|kind| kind.group == group && kind.plural == plural)
}

//! Tables: what stock kubectl prints for each kind, computed from the object and `now`. Pure.
//!
//! Owns the columns of each kind (Kubernetes' own, then those that matter at an edge) and the words in their cells; refuses to know
//! how the objects came to be. Start at [`Columns::of`]; `table/pod.rs` has kubectl's rules for STATUS.

use flotilla_manifests::kind::KindRef;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use serde_json::{Value, json};

use crate::negotiate::MetaVersion;
use crate::route::IncludeObject;

mod node;
mod other;
mod pod;
mod workload;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

/// `metav1.TableColumnDefinition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub cell: Cell,
    pub view: View,
    pub description: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    Text,
    Integer,
    /// The object's name: `format: name`.
    Name,
}

/// When a column is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Always,
    /// `-o wide`
    Wide,
}

/// The columns of one kind and how a row is made.
#[derive(Clone, Copy)]
pub struct Columns {
    columns: &'static [Column],
    cells: Cells,
}

/// One cell for each column.
type Cells = fn(&Object, Timestamp) -> Vec<Value>;

impl std::fmt::Debug for Columns {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.columns.iter().map(|column| column.name)).finish()
    }
}

impl Columns {
    pub fn of(kind: KindRef) -> Self {
        let (columns, cells): (&'static [Column], Cells) = match (kind.group, kind.name) {
            ("", "Pod") => (pod::COLUMNS, pod::cells),
            ("", "Node") => (node::COLUMNS, node::cells),
            ("apps", "DaemonSet") => (workload::DAEMON_SET_COLUMNS, workload::daemon_set_cells),
            ("apps", "Deployment") => (workload::DEPLOYMENT_COLUMNS, workload::deployment_cells),
            ("apps", "ReplicaSet") => (workload::REPLICA_SET_COLUMNS, workload::replica_set_cells),
            ("apps", "ControllerRevision") => (workload::REVISION_COLUMNS, workload::revision_cells),
            ("", "ConfigMap") => (other::CONFIG_MAP_COLUMNS, other::config_map_cells),
            ("", "Secret") => (other::SECRET_COLUMNS, other::secret_cells),
            ("", "ServiceAccount") => (other::SERVICE_ACCOUNT_COLUMNS, other::service_account_cells),
            ("", "Namespace") => (other::NAMESPACE_COLUMNS, other::namespace_cells),
            ("", "Event") => (other::EVENT_COLUMNS, other::event_cells),
            ("node.k8s.io", "RuntimeClass") => (other::RUNTIME_CLASS_COLUMNS, other::runtime_class_cells),
            ("scheduling.k8s.io", "PriorityClass") => (other::PRIORITY_CLASS_COLUMNS, other::priority_class_cells),
            ("coordination.k8s.io", "Lease") => (other::LEASE_COLUMNS, other::lease_cells),
            ("flotilla.dev", "Override") => (other::OVERRIDE_COLUMNS, other::override_cells),
            _ => (other::ANY_COLUMNS, other::any_cells),
        };
        Self { columns, cells }
    }

    /// `columnDefinitions`
    pub fn definitions(&self) -> Value {
        self.columns
            .iter()
            .map(|column| {
                json!({
                    "name": column.name,
                    "type": if column.cell == Cell::Integer { "integer" } else { "string" },
                    "format": if column.cell == Cell::Name { "name" } else { "" },
                    "description": column.description,
                    "priority": if column.view == View::Wide { 1 } else { 0 },
                })
            })
            .collect()
    }

    /// One row of `rows`.
    pub fn row<'a>(&self, object: &'a Object, now: Timestamp, version: MetaVersion, include: IncludeObject) -> Row<'a> {
        let object_of_row = match include {
            IncludeObject::None => None,
            IncludeObject::Metadata => Some(RowObject::Partial(Partial::of(object, version))),
            IncludeObject::Object => Some(RowObject::Whole(object.value())),
        };
        Row { cells: (self.cells)(object, now), object: object_of_row }
    }
}

/// `metav1.TableRow`; borrows from the object, so that long lists are not copied.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Row<'a> {
    pub cells: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<RowObject<'a>>,
}

#[derive(Debug, Clone, serde::Serialize)]
#[serde(untagged)]
enum RowObject<'a> {
    Partial(Partial<'a>),
    Whole(&'a Value),
}

/// `PartialObjectMetadata` of an object.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Partial<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Option<&'a Value>,
}

impl<'a> Partial<'a> {
    pub fn of(object: &'a Object, version: MetaVersion) -> Self {
        let metadata = object.value().get("metadata");
        Self { kind: "PartialObjectMetadata", api_version: version.api_version(), metadata }
    }
}

pub(crate) const fn always(name: &'static str, description: &'static str) -> Column {
    Column { name, cell: Cell::Text, view: View::Always, description }
}

pub(crate) const fn count(name: &'static str, description: &'static str) -> Column {
    Column { name, cell: Cell::Integer, view: View::Always, description }
}

pub(crate) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, cell: Cell::Text, view: View::Wide, description }
}

pub(crate) const NAME: Column =
    Column { name: "Name", cell: Cell::Name, view: View::Always, description: "Unique within a namespace" };
pub(crate) const AGE: Column = always("Age", "Time since creation");

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

/// Time since creation.
pub(crate) fn age(object: &Object, now: Timestamp) -> Value {
    since(object.creation_timestamp(), now).into()
}

/// How long ago, in kubectl's words; `<unknown>` when it is not known.
pub(crate) fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| UNKNOWN.to_owned(), |then| duration(i128::from(now.0) - i128::from(then.0)))
}

/// kubectl's short durations, of milliseconds: `45s`, `3m10s`, `5h`, `2d3h`, `1y30d`.
pub(crate) fn duration(milliseconds: i128) -> String {
    let seconds = milliseconds / 1000;
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let pair = |large: i128, unit: &str, small: i128, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match hours {
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        0..8 => pair(hours, "h", minutes % 60, "m"),
        8..48 => format!("{hours}h"),
        48..192 => pair(days, "d", hours % 24, "h"),
        192..17_520 => format!("{days}d"),
        17_520..70_080 => pair(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

/// The text behind a pointer, or `<none>`.
pub(crate) fn text_or_none(object: &Object, pointer: &str) -> Value {
    none_if_empty(object.text(pointer)).into()
}

pub(crate) fn none_if_empty(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

/// The integer behind a pointer; 0 when absent.
pub(crate) fn integer(object: &Object, pointer: &str) -> i64 {
    object.at(pointer).and_then(Value::as_i64).unwrap_or(0)
}

pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `a=b,c=d`, or `<none>`.
pub(crate) fn labels_text(map: Option<&Value>) -> String {
    let map = map.and_then(Value::as_object).filter(|map| !map.is_empty());
    let Some(map) = map else { return NONE.to_owned() };
    let mut pairs: Vec<String> =
        map.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or(""))).collect();
    pairs.sort();
    pairs.join(",")
}

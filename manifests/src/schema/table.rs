//! The generated tables, read once into a few compact vectors that borrow the embedded text.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

use super::{ListType, PatchStrategy, Type};
use crate::kind;

/// One schema a line: `"<name>":{...},`.
const TABLES: [&str; 2] = [include_str!("../../schema/kubernetes.json"), include_str!("../../schema/flotilla.json")];
const COMPONENT: &str = "#/components/schemas/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The type of one field. `target` is a definition for objects, a row of `lists` for arrays and maps, else 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) node_type: Type,
    pub(super) strategy: PatchStrategy,
    /// `x-kubernetes-map-type: atomic` at the field itself.
    atomic: bool,
    target: u16,
}

impl Node {
    pub(super) const ANY: Self = Self::leaf(Type::Any);

    const fn leaf(node_type: Type) -> Self {
        Self { node_type, strategy: PatchStrategy { merge: false, retain_keys: false }, atomic: false, target: 0 }
    }

    pub(super) fn object(definition: u16) -> Self {
        Self { target: definition, ..Self::leaf(Type::Object) }
    }
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) required: bool,
    pub(super) node: Node,
}

/// What an array or a map is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    child: Node,
    is_set: bool,
    keys: Box<[&'static str]>,
    pub(super) merge_key: Option<&'static str>,
}

impl List {
    pub(super) fn list_type(&'static self) -> ListType {
        match (self.is_set, &*self.keys) {
            (true, _) => ListType::Set,
            (false, []) => ListType::Atomic,
            (false, keys) => ListType::Map(keys),
        }
    }
}

#[derive(Debug)]
struct Definition {
    name: &'static str,
    source: &'static str,
    /// `x-kubernetes-map-type: atomic` of the type.
    atomic: bool,
    /// Into `fields`, sorted by name.
    fields: std::ops::Range<u32>,
}

/// Every schema; definitions are sorted by name.
#[derive(Debug)]
pub(super) struct Table {
    definitions: Vec<Definition>,
    fields: Vec<Field>,
    lists: Vec<List>,
}

/// A node of the text, as published.
#[derive(Deserialize)]
struct Source {
    #[serde(rename = "$ref")]
    reference: Option<&'static str>,
    #[serde(rename = "type")]
    kind: Option<&'static str>,
    format: Option<&'static str>,
    items: Option<Box<Source>>,
    #[serde(rename = "additionalProperties")]
    values: Option<Box<Source>>,
    properties: Option<BTreeMap<&'static str, Source>>,
    #[serde(default)]
    required: Vec<&'static str>,
    #[serde(rename = "x-kubernetes-list-type")]
    list_type: Option<&'static str>,
    #[serde(rename = "x-kubernetes-list-map-keys", default)]
    keys: Vec<&'static str>,
    #[serde(rename = "x-kubernetes-map-type")]
    map_type: Option<&'static str>,
    #[serde(rename = "x-kubernetes-patch-merge-key")]
    merge_key: Option<&'static str>,
    #[serde(rename = "x-kubernetes-patch-strategy", default)]
    strategy: &'static str,
}

impl Table {
    /// The tables of this build. Text the build embeds is checked by a test, so that what cannot be read here is `Any`.
    pub(super) fn shared() -> &'static Self {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| Self::read(&TABLES))
    }

    fn read(texts: &[&'static str]) -> Self {
        let mut definitions: Vec<Definition> = texts.iter().flat_map(|text| text.lines()).filter_map(line).collect();
        definitions.sort_unstable_by_key(|definition| definition.name);
        let mut table = Self { definitions, fields: Vec::new(), lists: Vec::new() };
        for index in 0..table.definitions.len() {
            let start = table.fields.len();
            if let Ok(source) = serde_json::from_str::<Source>(table.definitions[index].source) {
                table.definitions[index].atomic = source.map_type == Some("atomic");
                for (name, field) in source.properties.unwrap_or_default() {
                    let node = table.node(&field);
                    table.fields.push(Field { name, required: source.required.contains(&name), node });
                }
            }
            table.definitions[index].fields = position(start)..position(table.fields.len());
        }
        table.fields.shrink_to_fit();
        table.lists.shrink_to_fit();
        table
    }

    fn node(&mut self, source: &Source) -> Node {
        let mut node = match (source.reference, source.kind) {
            (Some(reference), _) => self.referred(reference.trim_start_matches(COMPONENT)),
            (None, Some("array")) => self.list_node(Type::Array, source, source.items.as_deref()),
            (None, Some("object")) if source.values.is_some() => {
                self.list_node(Type::Map, source, source.values.as_deref())
            }
            (None, Some("string")) => {
                Node::leaf(if source.format == Some("byte") { Type::Bytes } else { Type::String })
            }
            (None, Some("integer")) => {
                Node::leaf(if source.format == Some("int32") { Type::Int32 } else { Type::Int64 })
            }
            (None, Some("number")) => Node::leaf(Type::Number),
            (None, Some("boolean")) => Node::leaf(Type::Boolean),
            _ => Node::ANY,
        };
        let mut strategies = source.strategy.split(',');
        node.strategy.retain_keys = strategies.clone().any(|word| word == "retainKeys");
        node.strategy.merge = strategies.any(|word| word == "merge");
        node.atomic = source.map_type == Some("atomic");
        node
    }

    fn referred(&self, name: &str) -> Node {
        match name.rsplit('.').next().unwrap_or(name) {
            "Quantity" => Node::leaf(Type::Quantity),
            "IntOrString" => Node::leaf(Type::IntOrString),
            "Time" => Node::leaf(Type::Time),
            "MicroTime" => Node::leaf(Type::MicroTime),
            "RawExtension" | "FieldsV1" | "Patch" => Node::ANY,
            _ => self.definition(name).map_or(Node::ANY, Node::object),
        }
    }

    fn list_node(&mut self, node_type: Type, source: &Source, child: Option<&Source>) -> Node {
        let child = child.map_or(Node::ANY, |child| self.node(child));
        let keys = if source.list_type == Some("map") { source.keys.clone() } else { Vec::new() };
        let is_set = source.list_type == Some("set");
        let list = List { child, is_set, keys: keys.into_boxed_slice(), merge_key: source.merge_key };
        let index = self.lists.iter().position(|known| *known == list).unwrap_or_else(|| {
            self.lists.push(list);
            self.lists.len() - 1
        });
        Node { target: u16::try_from(index).unwrap_or(u16::MAX), ..Node::leaf(node_type) }
    }

    pub(super) fn definition(&self, name: &str) -> Option<u16> {
        let index = self.definitions.binary_search_by(|definition| definition.name.cmp(name)).ok()?;
        u16::try_from(index).ok()
    }

    pub(super) fn source(&self, name: &str) -> Option<&'static str> {
        self.definition(name).map(|index| self.definitions[usize::from(index)].source)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.definitions.iter().map(|definition| definition.name)
    }

    pub(super) fn name(&self, node: Node) -> Option<&'static str> {
        (node.node_type == Type::Object).then(|| self.definitions[usize::from(node.target)].name)
    }

    /// Whether an object or map has one owner as a whole.
    pub(super) fn is_atomic(&self, node: Node) -> bool {
        let of_type = || node.node_type == Type::Object && self.definitions[usize::from(node.target)].atomic;
        node.atomic || of_type()
    }

    pub(super) fn fields(&self, node: Node) -> &[Field] {
        if node.node_type != Type::Object {
            return &[];
        }
        let range = &self.definitions[usize::from(node.target)].fields;
        &self.fields[range.start as usize..range.end as usize]
    }

    pub(super) fn field(&self, node: Node, name: &str) -> Option<&Field> {
        let fields = self.fields(node);
        fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|index| &fields[index])
    }

    pub(super) fn list(&self, node: Node) -> Option<&List> {
        matches!(node.node_type, Type::Array | Type::Map).then(|| self.lists.get(usize::from(node.target))).flatten()
    }

    pub(super) fn child(&self, node: Node) -> Option<Node> {
        self.list(node).map(|list| list.child)
    }
}

fn position(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn line(text: &'static str) -> Option<Definition> {
    let (name, source) = text.trim_end_matches(',').strip_prefix('"')?.split_once("\":")?;
    Some(Definition { name, source, atomic: false, fields: 0..0 })
}

pub(super) fn components_for(group: &str, version: &str) -> BTreeMap<&'static str, Value> {
    let table = Table::shared();
    let kinds = || kind::ALL.iter().filter(|kind| kind.group == group && kind.version == version);
    let mut wanted: BTreeSet<String> =
        kinds().flat_map(|kind| [kind.schema.to_owned(), format!("{}List", kind.schema)]).collect();
    if !wanted.is_empty() {
        wanted.extend(["Status", "DeleteOptions", "Patch"].map(|name| format!("{META}{name}")));
    }
    if kinds().any(|kind| kind.subresources.contains(&"scale")) {
        wanted.insert(SCALE.to_owned());
    }
    let mut components = BTreeMap::new();
    while let Some(name) = wanted.pop_first() {
        let Some(index) = table.definition(&name) else { continue };
        let Definition { name, source, .. } = &table.definitions[usize::from(index)];
        for part in source.split(COMPONENT).skip(1) {
            let reference = part.split('"').next().unwrap_or("");
            if !components.contains_key(reference) {
                wanted.insert(reference.to_owned());
            }
        }
        let mut component = serde_json::from_str(source).unwrap_or(Value::Null);
        super::words::describe(name, &mut component);
        components.insert(*name, component);
    }
    components
}

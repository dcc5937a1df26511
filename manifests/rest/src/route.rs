//! From method, path and query to a typed request. Pure.
//!
//! Owns URL grammar and the names of query parameters; refuses headers (see [`negotiate`](crate::negotiate)) and bodies.
//! Start at [`Route::parse`].

use flotilla_manifests::admission::FieldValidation;
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind::{KindRef, Scope};
use http::Method;

use crate::backend::DryRun;
use crate::query::Query;
use crate::review::Review;

/// A longer path or query is refused before it is looked at.
pub const URL_BYTES_MAX: usize = 16 * 1024;

/// What a URL asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Route {
    Probe(Probe),
    Version,
    Discovery(Discovery),
    OpenApi(OpenApi),
    /// A question about the caller: what may I do, who am I.
    Review(Review),
    Resource(Box<ResourceRequest>),
}

/// Health checks, answered to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    Livez,
    Readyz,
    Healthz,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// `/api`
    Core,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1` (empty group) and `/apis/GROUP/VERSION`
    Resources { group: String, version: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenApi {
    /// `/openapi/v2`: kubectl asks for it only after it has not found a kind in version 3.
    Old,
    /// `/openapi/v3`
    Index,
    /// `/openapi/v3/api/v1`, `/openapi/v3/apis/GROUP/VERSION`
    Document { group: String, version: String },
}

/// Kubernetes' verbs, as its authorisation names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Log,
    Eviction,
}

impl Subresource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Log => "log",
            Self::Eviction => "eviction",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Status, Self::Scale, Self::Log, Self::Eviction].into_iter().find(|one| one.as_str() == text)
    }

    fn verbs(self) -> &'static [Verb] {
        match self {
            Self::Status | Self::Scale => &[Verb::Get, Verb::Update, Verb::Patch],
            Self::Log => &[Verb::Get],
            Self::Eviction => &[Verb::Create],
        }
    }
}

/// A request about objects of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceRequest {
    pub verb: Verb,
    pub kind: KindRef,
    /// Empty: a cluster-scoped kind, or all namespaces.
    pub namespace: String,
    /// Empty: a collection.
    pub name: String,
    pub subresource: Option<Subresource>,
    pub options: Options,
}

/// Query parameters that more than one verb knows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: ResourceVersion,
    pub resource_version_match: VersionMatch,
    pub watch: WatchOptions,
    pub dry_run: Option<DryRun>,
    pub field_validation: FieldValidation,
    pub field_manager: Option<String>,
    pub include_object: IncludeObject,
    /// The rest, for the verbs that alone know them: delete and logs.
    pub query: Query,
}

/// The three meanings of `resourceVersion` (kubernetes.io, "Resource versions").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResourceVersion {
    /// Absent: the most recent.
    #[default]
    Unset,
    /// `0`: any.
    Any,
    At(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VersionMatch {
    #[default]
    Unset,
    Exact,
    NotOlderThan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchOptions {
    pub bookmarks: bool,
    pub timeout_seconds: Option<u64>,
    /// `sendInitialEvents`; `None` when absent.
    pub initial_events: Option<bool>,
}

/// How much of an object a Table row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl Route {
    /// `kinds` are the kinds this server serves; anything else is 404.
    ///
    /// # Errors
    /// 404 for an unknown path, 405 for a method it does not have, 400 for a parameter that cannot be read.
    pub fn parse(method: &Method, path: &str, query: &str, kinds: &[KindRef]) -> Result<Self, ApiError> {
        if path.len() + query.len() > URL_BYTES_MAX {
            let message = format!("the URL is longer than {URL_BYTES_MAX} bytes");
            return Err(ApiError::of(Reason::RequestEntityTooLarge, message));
        }
        let segments = segments(path)?;
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let fixed = match words.as_slice() {
            ["livez", ..] => Self::Probe(Probe::Livez),
            ["readyz", ..] => Self::Probe(Probe::Readyz),
            ["healthz", ..] => Self::Probe(Probe::Healthz),
            ["version"] => Self::Version,
            ["api"] => Self::Discovery(Discovery::Core),
            ["apis"] => Self::Discovery(Discovery::Groups),
            ["api", version] => Self::Discovery(resources("", version)),
            ["apis", group] => Self::Discovery(Discovery::Group((*group).to_owned())),
            ["apis", group, version] => Self::Discovery(resources(group, version)),
            ["openapi", "v2"] => Self::OpenApi(OpenApi::Old),
            ["openapi", "v3"] => Self::OpenApi(OpenApi::Index),
            ["openapi", "v3", "api", version] => Self::OpenApi(document("", version)),
            ["openapi", "v3", "apis", group, version] => Self::OpenApi(document(group, version)),
            ["apis", group, version, plural] if Review::of(group, version, plural).is_some() => {
                let review = Review::of(group, version, plural).ok_or_else(no_such_path)?;
                return if *method == Method::POST { Ok(Self::Review(review)) } else { Err(wrong_method(method)) };
            }
            ["api", version, rest @ ..] => return resource(method, "", version, rest, query, kinds),
            ["apis", group, version, rest @ ..] => return resource(method, group, version, rest, query, kinds),
            _ => return Err(no_such_path()),
        };
        if matches!(*method, Method::GET | Method::HEAD) { Ok(fixed) } else { Err(wrong_method(method)) }
    }
}

fn resources(group: &str, version: &str) -> Discovery {
    Discovery::Resources { group: group.to_owned(), version: version.to_owned() }
}

fn document(group: &str, version: &str) -> OpenApi {
    OpenApi::Document { group: group.to_owned(), version: version.to_owned() }
}

/// What the words after the version name.
struct Target<'a> {
    namespace: &'a str,
    plural: &'a str,
    name: &'a str,
    subresource: &'a str,
}

impl<'a> Target<'a> {
    fn parse(words: &[&'a str]) -> Option<Self> {
        let (namespace, rest) = match words {
            // `namespaces/NAME` and its subresources are about the Namespace itself.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", words),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            _ => ("", words),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, subresource] => (*plural, *name, *subresource),
            _ => return None,
        };
        Some(Self { namespace, plural, name, subresource })
    }
}

fn resource(
    method: &Method,
    group: &str,
    version: &str,
    words: &[&str],
    query: &str,
    kinds: &[KindRef],
) -> Result<Route, ApiError> {
    let target = Target::parse(words).ok_or_else(no_such_path)?;
    let row = kinds.iter().copied().find(|row| (row.group, row.version, row.plural) == (group, version, target.plural));
    let kind = row.ok_or_else(no_such_path)?;
    if kind.scope == Scope::Cluster && !target.namespace.is_empty() {
        return Err(no_such_path());
    }
    let object_of_a_namespaced_kind = kind.scope == Scope::Namespaced && !target.name.is_empty();
    if object_of_a_namespaced_kind && target.namespace.is_empty() {
        return Err(no_such_path());
    }
    let subresource = match target.subresource {
        "" => None,
        text if kind.name == "Pod" && STREAMED.contains(&text) => return Err(not_streamed(text)),
        text if kind.subresources.contains(&text) => Some(Subresource::parse(text).ok_or_else(no_such_path)?),
        _ => return Err(no_such_path()),
    };
    let query = Query::parse(query)?;
    let watching = query.flag("watch")?;
    let verb = verb(method, &target, subresource, watching).ok_or_else(|| wrong_method(method))?;
    if verb == Verb::Create && kind.scope == Scope::Namespaced && target.namespace.is_empty() {
        return Err(wrong_method(method));
    }
    let mut options = Options::parse(query)?;
    if verb == Verb::Watch && !target.name.is_empty() {
        let by_name = format!("metadata.name={}", target.name);
        let selector = &mut options.field_selector;
        *selector = if selector.is_empty() { by_name } else { format!("{selector},{by_name}") };
    }
    Ok(Route::Resource(Box::new(ResourceRequest {
        verb,
        kind,
        namespace: target.namespace.to_owned(),
        name: target.name.to_owned(),
        subresource,
        options,
    })))
}

fn verb(method: &Method, target: &Target<'_>, subresource: Option<Subresource>, watching: bool) -> Option<Verb> {
    let one = !target.name.is_empty();
    let verb = match *method {
        Method::GET | Method::HEAD if watching && subresource.is_none() => Verb::Watch,
        Method::GET | Method::HEAD if one => Verb::Get,
        Method::GET | Method::HEAD => Verb::List,
        Method::POST if !one || subresource == Some(Subresource::Eviction) => Verb::Create,
        Method::PUT if one => Verb::Update,
        Method::PATCH if one => Verb::Patch,
        Method::DELETE if one => Verb::Delete,
        Method::DELETE => Verb::DeleteCollection,
        _ => return None,
    };
    match subresource {
        Some(subresource) if !subresource.verbs().contains(&verb) => None,
        _ => Some(verb),
    }
}

impl Options {
    fn parse(query: Query) -> Result<Self, ApiError> {
        let version = match query.text("resourceVersion") {
            "" => ResourceVersion::Unset,
            "0" => ResourceVersion::Any,
            text => ResourceVersion::At(parse_version(text)?),
        };
        let version_match = match query.text("resourceVersionMatch") {
            "" => VersionMatch::Unset,
            "Exact" => VersionMatch::Exact,
            "NotOlderThan" => VersionMatch::NotOlderThan,
            other => return Err(query.bad("resourceVersionMatch", other, "supported: \"Exact\", \"NotOlderThan\"")),
        };
        let watch = WatchOptions {
            bookmarks: query.flag("allowWatchBookmarks")?,
            timeout_seconds: query.number("timeoutSeconds")?,
            initial_events: match query.text("sendInitialEvents") {
                "" => None,
                _ => Some(query.flag("sendInitialEvents")?),
            },
        };
        let dry_run = match query.text("dryRun") {
            "" => None,
            "All" => Some(DryRun::All),
            other => return Err(query.bad("dryRun", other, "supported: \"All\"")),
        };
        let field_validation = match query.text("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Strict" => FieldValidation::Strict,
            "Ignore" => FieldValidation::Ignore,
            other => return Err(query.bad("fieldValidation", other, "supported: \"Ignore\", \"Strict\", \"Warn\"")),
        };
        let include_object = match query.text("includeObject") {
            "" | "Metadata" => IncludeObject::Metadata,
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            other => return Err(query.bad("includeObject", other, "supported: \"None\", \"Metadata\", \"Object\"")),
        };
        let manager = query.text("fieldManager");
        if manager.len() > 128 {
            return Err(query.bad("fieldManager", manager, "may not be longer than 128 bytes"));
        }
        Ok(Self {
            label_selector: query.text("labelSelector").to_owned(),
            field_selector: query.text("fieldSelector").to_owned(),
            resource_version: version,
            resource_version_match: version_match,
            watch,
            dry_run,
            field_validation,
            field_manager: Some(manager.to_owned()).filter(|text| !text.is_empty()),
            include_object,
            query,
        })
    }
}

/// A decimal without leading zero, below 2^63 (KEP-5504).
///
/// # Errors
/// 400 naming the text.
pub fn parse_version(text: &str) -> Result<u64, ApiError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let number = text.parse::<u64>().ok().filter(|number| digits && i64::try_from(*number).is_ok());
    number.ok_or_else(|| ApiError::of(Reason::BadRequest, format!("invalid resource version {text:?}")))
}

/// Percent-decoded segments; one trailing slash is allowed.
fn segments(path: &str) -> Result<Vec<String>, ApiError> {
    let path = path.strip_prefix('/').ok_or_else(no_such_path)?;
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments = Vec::new();
    for raw in path.split('/') {
        let text = crate::query::percent_decode(raw).ok_or_else(no_such_path)?;
        if text.is_empty() || text == "." || text == ".." || text.contains('/') {
            return Err(no_such_path());
        }
        segments.push(text);
    }
    Ok(segments)
}

/// kube-apiserver's words; kubectl turns them into "the server doesn't have a resource type".
pub(crate) fn no_such_path() -> ApiError {
    ApiError::of(Reason::NotFound, "the server could not find the requested resource")
}

/// What of a Pod Kubernetes serves over streams in both directions.
const STREAMED: [&str; 4] = ["exec", "attach", "portforward", "proxy"];

fn not_streamed(subresource: &str) -> ApiError {
    let instead = match subresource {
        "exec" | "attach" => {
            "read what it says with `kubectl logs`, and run commands on the device itself; files come and go through ConfigMaps and volumes"
        }
        _ => "reach the Pod's port on the device itself",
    };
    let message =
        format!("pods/{subresource} is not served here (kubectl exec, attach, cp and port-forward need it): {instead}");
    ApiError::of(Reason::MethodNotAllowed, message)
}

fn wrong_method(method: &Method) -> ApiError {
    ApiError::of(
        Reason::MethodNotAllowed,
        format!("the server does not allow this method on the requested resource ({method})"),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

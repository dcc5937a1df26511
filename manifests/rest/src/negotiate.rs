//! Content negotiation: what may be answered to an `Accept`, and what a `Content-Type` says of a body. Pure.
//!
//! Owns Kubernetes' media type parameters (`as`, `g`, `v`, `stream`); reads protobuf, answers JSON; refuses CBOR. Start at [`Form::of`],
//! [`DiscoveryForm::of`] and [`BodyType::of`].

use flotilla_manifests::api_error::{ApiError, Reason};

/// JSON, or JSON called YAML (every JSON text is one of YAML 1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

impl Encoding {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// Version of `meta.k8s.io` in which a transformed answer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaVersion {
    V1,
    V1Beta1,
}

impl MetaVersion {
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// What shape the objects of an answer take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Whole,
    Table(MetaVersion),
    /// `PartialObjectMetadata`, and `PartialObjectMetadataList` for lists.
    Partial(MetaVersion),
}

/// The negotiated answer to a request about objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub encoding: Encoding,
    pub shape: Shape,
}

/// Whether the answer is one object or many: `as=PartialObjectMetadata` fits only the former.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    One,
    Many,
}

impl Form {
    /// The first clause that can be served wins, as in kube-apiserver (quality values order clauses, ties keep the order).
    ///
    /// # Errors
    /// 406 naming what is served.
    pub fn of(accept: Option<&str>, count: Count) -> Result<Self, ApiError> {
        let plain = Self { encoding: Encoding::Json, shape: Shape::Whole };
        let Some(accept) = accept.filter(|text| !text.trim().is_empty()) else { return Ok(plain) };
        clauses(accept).iter().find_map(|clause| Self::serve(clause, count)).ok_or_else(not_acceptable)
    }

    fn serve(clause: &Clause<'_>, count: Count) -> Option<Self> {
        let encoding = clause.encoding()?;
        let shape = match (clause.parameter("as"), clause.parameter("g"), clause.parameter("v")) {
            (None, _, _) => Shape::Whole,
            (Some("Table"), Some("meta.k8s.io"), version) => Shape::Table(meta_version(version)?),
            (Some("PartialObjectMetadata"), Some("meta.k8s.io"), version) if count == Count::One => {
                Shape::Partial(meta_version(version)?)
            }
            (Some("PartialObjectMetadataList"), Some("meta.k8s.io"), version) if count == Count::Many => {
                Shape::Partial(meta_version(version)?)
            }
            _ => return None,
        };
        Some(Self { encoding, shape })
    }
}

fn meta_version(version: Option<&str>) -> Option<MetaVersion> {
    match version {
        Some("v1") => Some(MetaVersion::V1),
        Some("v1beta1") => Some(MetaVersion::V1Beta1),
        _ => None,
    }
}

/// The negotiated form of `/api` and `/apis`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryForm {
    Plain,
    AggregatedV2,
    AggregatedV2Beta1,
}

impl DiscoveryForm {
    /// # Errors
    /// 406 naming what is served.
    pub fn of(accept: Option<&str>) -> Result<Self, ApiError> {
        let Some(accept) = accept.filter(|text| !text.trim().is_empty()) else { return Ok(Self::Plain) };
        clauses(accept).iter().find_map(Self::serve).ok_or_else(not_acceptable)
    }

    fn serve(clause: &Clause<'_>) -> Option<Self> {
        clause.encoding()?;
        match (clause.parameter("as"), clause.parameter("g"), clause.parameter("v")) {
            (None, _, _) => Some(Self::Plain),
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => Some(Self::AggregatedV2),
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2beta1")) => {
                Some(Self::AggregatedV2Beta1)
            }
            _ => None,
        }
    }

    /// Clients compare it byte for byte with what they asked for.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "application/json",
            Self::AggregatedV2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::AggregatedV2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// What a request's body is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyType {
    Json,
    Yaml,
    /// What typed clients send by default since client-go 0.32.
    Protobuf,
}

impl BodyType {
    /// An absent header means JSON.
    ///
    /// # Errors
    /// 415 naming what is served.
    pub fn of(content_type: Option<&str>) -> Result<Self, ApiError> {
        match media_type(content_type) {
            "" | "application/json" => Ok(Self::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Ok(Self::Protobuf),
            other => Err(unsupported(other, "application/json, application/yaml, application/vnd.kubernetes.protobuf")),
        }
    }
}

/// The kinds of patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    JsonMerge,
    StrategicMerge,
    Json,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// # Errors
    /// 415 naming what is served.
    pub fn of(content_type: Option<&str>) -> Result<Self, ApiError> {
        match media_type(content_type) {
            "application/merge-patch+json" => Ok(Self::JsonMerge),
            "application/strategic-merge-patch+json" => Ok(Self::StrategicMerge),
            "application/json-patch+json" => Ok(Self::Json),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            other => Err(unsupported(
                other,
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml",
            )),
        }
    }
}

fn media_type(content_type: Option<&str>) -> &str {
    content_type.unwrap_or("").split(';').next().unwrap_or("").trim()
}

fn unsupported(got: &str, served: &str) -> ApiError {
    let message =
        format!("the body of the request was in an unknown format ({got:?}) - accepted media types include: {served}");
    ApiError::of(Reason::UnsupportedMediaType, message)
}

fn not_acceptable() -> ApiError {
    ApiError::of(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/yaml; \
         for objects also application/json;as=Table;v=v1;g=meta.k8s.io and as=PartialObjectMetadata",
    )
}

struct Clause<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality_thousandths: u32,
}

impl Clause<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn encoding(&self) -> Option<Encoding> {
        match self.media_type {
            "application/json" | "application/*" | "*/*" => Some(Encoding::Json),
            "application/yaml" => Some(Encoding::Yaml),
            _ => None,
        }
    }
}

/// Best first. A clause of quality 0 is a refusal and left out.
fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = accept
        .split(',')
        .take(32)
        .map(|text| {
            let mut parts = text.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or("");
            let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
            let quality = parameters.iter().find(|(name, _)| *name == "q").map_or(1000, |(_, text)| thousandths(text));
            Clause { media_type, parameters, quality_thousandths: quality }
        })
        .filter(|clause| clause.quality_thousandths > 0)
        .collect();
    clauses.sort_by_key(|clause| std::cmp::Reverse(clause.quality_thousandths));
    clauses
}

/// `0.9` is 900; what cannot be read counts as 1.
fn thousandths(text: &str) -> u32 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    match (whole.parse::<u32>(), digits.parse::<u32>()) {
        (Ok(0), Ok(part)) => part,
        _ => 1000,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const KUBECTL_GET: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
    const KUBECTL_1_33: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
        application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

    #[test]
    fn forms() {
        let check = |accept: &str, count, expected: Option<(Encoding, Shape)>| {
            let form = Form::of(Some(accept), count).ok().map(|form| (form.encoding, form.shape));
            assert_eq!(form, expected, "{accept}");
        };
        use {Encoding::*, Shape::*};
        check("", Count::One, Some((Json, Whole)));
        check("*/*", Count::One, Some((Json, Whole)));
        check("application/vnd.kubernetes.protobuf,application/json", Count::One, Some((Json, Whole)));
        check("application/vnd.kubernetes.protobuf", Count::One, None);
        check("application/yaml", Count::One, Some((Yaml, Whole)));
        check("text/html, application/json;q=0.5, application/yaml;q=0.9", Count::One, Some((Yaml, Whole)));
        check("application/json;q=0", Count::One, None);
        check(KUBECTL_GET, Count::Many, Some((Json, Table(MetaVersion::V1))));
        check(
            "application/json;as=Table;v=v1beta1;g=meta.k8s.io",
            Count::One,
            Some((Json, Table(MetaVersion::V1Beta1))),
        );
        check("application/json;as=Table;v=v2;g=meta.k8s.io", Count::One, None);
        let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
        check(partial, Count::Many, Some((Json, Partial(MetaVersion::V1))));
        check(partial, Count::One, None);
        check("application/json;stream=watch", Count::Many, Some((Json, Whole)));
    }

    #[test]
    fn discovery_is_answered_in_the_version_asked_for() {
        assert_eq!(DiscoveryForm::of(Some(KUBECTL_1_33)).unwrap(), DiscoveryForm::AggregatedV2);
        let old = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(DiscoveryForm::of(Some(old)).unwrap(), DiscoveryForm::AggregatedV2Beta1);
        assert!(old.starts_with(DiscoveryForm::AggregatedV2Beta1.content_type()));
        assert!(KUBECTL_1_33.starts_with(DiscoveryForm::AggregatedV2.content_type()));
        assert_eq!(DiscoveryForm::of(Some("application/json")).unwrap(), DiscoveryForm::Plain);
        assert_eq!(DiscoveryForm::of(Some("text/plain")).unwrap_err().reason, Reason::NotAcceptable);
    }

    #[test]
    fn bodies() {
        assert_eq!(BodyType::of(None).unwrap(), BodyType::Json);
        assert_eq!(BodyType::of(Some("application/json; charset=utf-8")).unwrap(), BodyType::Json);
        assert_eq!(BodyType::of(Some("application/yaml")).unwrap(), BodyType::Yaml);
        assert_eq!(BodyType::of(Some("application/vnd.kubernetes.protobuf")).unwrap(), BodyType::Protobuf);
        assert_eq!(BodyType::of(Some("application/cbor")).unwrap_err().reason, Reason::UnsupportedMediaType);
        assert_eq!(PatchType::of(Some("application/json-patch+json")).unwrap(), PatchType::Json);
        assert_eq!(PatchType::of(Some("application/apply-patch+yaml")).unwrap(), PatchType::Apply);
        assert_eq!(PatchType::of(Some("application/json")).unwrap_err().reason, Reason::UnsupportedMediaType);
    }
}

//! Labels, annotations' keys, and the selectors over labels and fields.
//!
//! Owns the syntax rules of names and label values, label selectors in both their forms (`metav1.LabelSelector` and the
//! query string `a=b,c in (d,e),!f`), and field selectors with the fields each kind supports. Refuses to touch objects: it
//! only answers whether one matches. Start at [`Selector`] and [`field::FieldSelector`].

pub mod field;
pub mod syntax;

mod query;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::api_error::{ApiError, Reason, Violation};
use crate::object::Object;

/// Longest selector read from a query string; longer ones get a 400.
const SELECTOR_BYTES_MAX: usize = 16 * 1024;

/// Most values in one `in (...)`, and most requirements in one selector.
const SELECTOR_TERMS_MAX: usize = 1_000;

/// What one requirement asks of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    /// Both sides integers, and the label's greater.
    Gt,
    Lt,
}

/// One term of a selector. `values` is sorted; one for `Gt` and `Lt`, none for `Exists` and `DoesNotExist`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

impl Requirement {
    /// As `nodeSelectorTerms[].matchExpressions[]` and `labelSelector.matchExpressions[]` write it.
    ///
    /// # Errors
    /// Every fault, with `field` as the path of the expression.
    pub fn of_json(value: &Value, field: &str) -> Result<Self, Vec<Violation>> {
        let key = value.get("key").and_then(Value::as_str).unwrap_or("").to_owned();
        let name = value.get("operator").and_then(Value::as_str).unwrap_or("");
        let mut values: Vec<String> = value
            .get("values")
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
            .unwrap_or_default();
        let mut faults = Vec::new();
        if let Err(why) = syntax::qualified_name(&key) {
            faults.push(invalid(format!("{field}.key"), &key, why));
        }
        let operator = match name {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Gt,
            "Lt" => Operator::Lt,
            _ => {
                faults.push(invalid(format!("{field}.operator"), name, "not a valid selector operator"));
                return Err(faults);
            }
        };
        if let Some(fault) = values_fault(operator, &values, field) {
            faults.push(fault);
        }
        if faults.is_empty() {
            values.sort();
            values.dedup();
            Ok(Self { key, operator, values })
        } else {
            Err(faults)
        }
    }

    /// Whether labels with this value at [`key`](Self::key) (or without it) fulfil the requirement.
    pub fn matches(&self, label: Option<&str>) -> bool {
        let among = |value: &str| self.values.iter().any(|item| item == value);
        match (self.operator, label) {
            (Operator::In, Some(value)) => among(value),
            (Operator::NotIn, Some(value)) => !among(value),
            (Operator::Exists, label) => label.is_some(),
            (Operator::DoesNotExist, label) => label.is_none(),
            (Operator::NotIn, None) => true,
            (Operator::Gt, Some(value)) => self.compare(value).is_some_and(|order| order.is_gt()),
            (Operator::Lt, Some(value)) => self.compare(value).is_some_and(|order| order.is_lt()),
            (Operator::In | Operator::Gt | Operator::Lt, None) => false,
        }
    }

    fn compare(&self, value: &str) -> Option<std::cmp::Ordering> {
        let bound: i64 = self.values.first()?.parse().ok()?;
        Some(value.parse::<i64>().ok()?.cmp(&bound))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.join(",");
        match (self.operator, self.values.len()) {
            (Operator::Exists, _) => formatter.write_str(&self.key),
            (Operator::DoesNotExist, _) => write!(formatter, "!{}", self.key),
            (Operator::In, 1) => write!(formatter, "{}={values}", self.key),
            (Operator::NotIn, 1) => write!(formatter, "{}!={values}", self.key),
            (Operator::In, _) => write!(formatter, "{} in ({values})", self.key),
            (Operator::NotIn, _) => write!(formatter, "{} notin ({values})", self.key),
            (Operator::Gt, _) => write!(formatter, "{}>{values}", self.key),
            (Operator::Lt, _) => write!(formatter, "{}<{values}", self.key),
        }
    }
}

/// A conjunction of requirements, or nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    /// `None` selects nothing (an absent `metav1.LabelSelector`); empty selects everything.
    requirements: Option<Vec<Requirement>>,
}

impl Selector {
    pub fn everything() -> Self {
        Self { requirements: Some(Vec::new()) }
    }

    pub fn nothing() -> Self {
        Self { requirements: None }
    }

    /// Reads a `labelSelector` query parameter. Empty selects everything.
    ///
    /// # Errors
    /// 400 with what was expected where.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let requirements = query::parse(text).map_err(|why| {
            ApiError::of(Reason::BadRequest, format!("unable to parse label selector {text:?}: {why}"))
        })?;
        Ok(Self { requirements: Some(requirements) })
    }

    /// Reads a `metav1.LabelSelector`. Absent or null selects nothing, `{}` everything.
    ///
    /// # Errors
    /// Every fault, below the path `field` (such as `spec.selector`).
    pub fn of_json(value: Option<&Value>, field: &str) -> Result<Self, Vec<Violation>> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        let mut faults = Vec::new();
        for (key, label) in value.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let label = label.as_str().unwrap_or("");
            if let Err(why) = syntax::qualified_name(key) {
                faults.push(invalid(format!("{field}.matchLabels"), key, why));
            }
            if let Err(why) = syntax::label_value(label) {
                faults.push(invalid(format!("{field}.matchLabels"), label, why));
            }
            requirements.push(Requirement { key: key.clone(), operator: Operator::In, values: vec![label.to_owned()] });
        }
        let expressions = value.get("matchExpressions").and_then(Value::as_array);
        for (index, expression) in expressions.into_iter().flatten().enumerate() {
            let field = format!("{field}.matchExpressions[{index}]");
            match Requirement::of_json(expression, &field) {
                Ok(Requirement { operator: Operator::Gt | Operator::Lt, .. }) => {
                    let name = expression.get("operator").and_then(Value::as_str).unwrap_or("");
                    faults.push(invalid(format!("{field}.operator"), name, "not a valid selector operator"));
                }
                Ok(requirement) => requirements.push(requirement),
                Err(more) => faults.extend(more),
            }
        }
        requirements.sort();
        if faults.is_empty() { Ok(Self { requirements: Some(requirements) }) } else { Err(faults) }
    }

    /// A workload's `spec.selector`; a damaged one selects nothing.
    pub fn of_workload(object: &Object) -> Self {
        Self::of_json(object.at("/spec/selector"), "spec.selector").unwrap_or_else(|_| Self::nothing())
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// Whether the object's own labels match.
    pub fn matches_object(&self, object: &Object) -> bool {
        self.matches_by(|key| object.label(key))
    }

    /// Whether it selects whatever comes.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether it asks nothing of any label, or selects nothing at all: refused for workloads.
    pub fn is_empty(&self) -> bool {
        self.requirements.as_ref().is_none_or(Vec::is_empty)
    }

    /// The terms; none for [`nothing`](Self::nothing) too.
    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or_default()
    }

    fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let Some(requirements) = &self.requirements else { return false };
        requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }
}

impl fmt::Display for Selector {
    /// The query-string form; `<nothing>` has none.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(requirements) = &self.requirements else { return formatter.write_str("<nothing>") };
        for (index, requirement) in requirements.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            requirement.fmt(formatter)?;
        }
        Ok(())
    }
}

fn values_fault(operator: Operator, values: &[String], field: &str) -> Option<Violation> {
    let field = format!("{field}.values");
    match operator {
        Operator::In | Operator::NotIn if values.is_empty() => Some(Violation {
            reason: "FieldValueRequired",
            field,
            message: "Required value: must be specified when `operator` is 'In' or 'NotIn'".into(),
        }),
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => Some(Violation {
            reason: "FieldValueForbidden",
            field,
            message: "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'".into(),
        }),
        Operator::Gt | Operator::Lt if values.len() != 1 => Some(Violation {
            reason: "FieldValueRequired",
            field,
            message: "Required value: must be specified single value when `operator` is 'Lt' or 'Gt'".into(),
        }),
        Operator::Gt | Operator::Lt => {
            let text = values.first()?;
            let fault = text.parse::<i64>().is_err();
            fault.then(|| invalid(field, text, "for 'Gt', 'Lt' operators, the value must be an integer"))
        }
        _ => values
            .iter()
            .find_map(|value| syntax::label_value(value).err().map(|why| invalid(field.clone(), value, why))),
    }
}

fn invalid(field: String, value: &str, why: &str) -> Violation {
    Violation { reason: "FieldValueInvalid", field, message: format!("Invalid value: {value:?}: {why}") }
}

#[cfg(test)]
mod tests;

//! What the schema alone demands: required fields, and quantities that can be read. Last of the rules: others word it better.

use serde_json::Value;

use super::place::{At, Faults};
use crate::object::Object;
use crate::quantity::Quantity;
use crate::schema::{self, Schema, Type};

pub(super) fn object(object: &Object, faults: &mut Faults) {
    let schema = schema::of(object.kind());
    let root = At::root(object.value());
    for (name, _) in object.value().as_object().into_iter().flatten() {
        // What a controller or a device reports is its own affair.
        if let Some(field) = schema.field(name).filter(|_| name != "status") {
            visit(field, &root.field(name), faults);
        }
    }
    for name in schema.required() {
        let is_missing = object.value().get(name).is_none_or(Value::is_null);
        if is_missing && schema.field(name).is_some_and(|field| field.node_type() == Type::Object) {
            faults.required(&root.field(name), "");
        }
    }
}

fn visit(schema: Schema, at: &At<'_>, faults: &mut Faults) {
    match schema.node_type() {
        Type::Object if at.value.is_object() => {
            for field in schema.fields() {
                let below = at.field(field.name);
                if !below.value.is_null() {
                    visit(field.schema, &below, faults);
                }
                if field.required && !below.is_said() && !faults.has(&below) {
                    faults.required(&below, "");
                }
            }
        }
        Type::Array => {
            if let Some(items) = schema.items() {
                at.items().for_each(|item| visit(items, &item, faults));
            }
        }
        Type::Map => {
            if let Some(values) = schema.items() {
                at.entries().for_each(|(_, value)| visit(values, &value, faults));
            }
        }
        Type::Quantity => {
            if let Err(error) = Quantity::of_json(at.value) {
                faults.invalid(at, &error.to_string());
            }
        }
        _ => {}
    }
}

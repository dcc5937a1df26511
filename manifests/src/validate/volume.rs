//! Volumes of a Pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::environment::{self, Shower};
use super::place::{At, Faults};
use super::text;
use crate::label::syntax;
use crate::quantity::Quantity;

const MODE_MAX: i64 = 0o777;
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

/// Checks the volumes; gives their names.
pub(super) fn all<'a>(volumes: &'a At<'a>, faults: &mut Faults) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for volume in volumes.items() {
        let name = volume.field("name");
        faults.required_syntax(&name, syntax::dns_label);
        let text = volume.value["name"].as_str().unwrap_or("");
        if !text.is_empty() && !names.insert(text) {
            faults.duplicate(&name, name.value);
        }
        let mut said = 0;
        for (source_name, _) in volume.value.as_object().into_iter().flatten().filter(|(name, _)| *name != "name") {
            let source_at = volume.field(source_name);
            if !source_at.is_said() {
                continue;
            }
            said += 1;
            if said > 1 {
                faults.forbidden(&source_at, "may not specify more than 1 volume type");
            } else {
                source(source_name, &source_at, faults);
            }
        }
        if said == 0 {
            faults.required(&volume, "must specify a volume type");
        }
    }
    names
}

fn source(name: &str, source: &At<'_>, faults: &mut Faults) {
    match name {
        "configMap" => {
            named(&source.field("name"), faults);
            mode(&source.field("defaultMode"), faults);
            files(&source.field("items"), faults);
        }
        "secret" => {
            named(&source.field("secretName"), faults);
            mode(&source.field("defaultMode"), faults);
            files(&source.field("items"), faults);
        }
        "hostPath" => {
            let path = source.field("path");
            faults.required_syntax(&path, text::no_step_back);
            faults.one_of(&source.field("type"), HOST_PATH_TYPES);
        }
        "emptyDir" => {
            let limit = source.field("sizeLimit");
            if Quantity::of_json(limit.value).is_ok_and(Quantity::is_negative) {
                faults.forbidden(&limit, "SizeLimit field must be a valid resource quantity");
            }
        }
        "downwardAPI" => {
            mode(&source.field("defaultMode"), faults);
            downward(&source.field("items"), faults);
        }
        "projected" => {
            mode(&source.field("defaultMode"), faults);
            let mut paths = BTreeSet::new();
            source.field("sources").items().for_each(|part| projection(source, &part, &mut paths, faults));
        }
        "nfs" => {
            let path = source.field("path");
            if path.is_said() && !path.text().starts_with('/') {
                faults.invalid(&path, "must be an absolute path");
            }
        }
        "persistentVolumeClaim" => named(&source.field("claimName"), faults),
        _ => {}
    }
}

/// The name of another object: that it must be there is all the API says of it.
fn named(name: &At<'_>, faults: &mut Faults) {
    if !name.is_said() {
        faults.required(name, "");
    }
}

fn mode(mode: &At<'_>, faults: &mut Faults) {
    if mode.number().is_some_and(|mode| !(0..=MODE_MAX).contains(&mode)) {
        faults.invalid(mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// `items`: which keys become which files.
fn files(items: &At<'_>, faults: &mut Faults) {
    for item in items.items() {
        let key = item.field("key");
        if !key.is_said() {
            faults.required(&key, "");
        }
        file_path(&item.field("path"), faults);
        mode(&item.field("mode"), faults);
    }
}

fn file_path(path: &At<'_>, faults: &mut Faults) {
    faults.required_syntax(path, |text| {
        text::relative_path(text)?;
        if text.starts_with("..") { Err("must not start with '..'") } else { Ok(()) }
    });
}

fn downward(items: &At<'_>, faults: &mut Faults) {
    for item in items.items() {
        file_path(&item.field("path"), faults);
        mode(&item.field("mode"), faults);
        let (field, resource) = (item.field("fieldRef"), item.field("resourceFieldRef"));
        match (field.is_said(), resource.is_said()) {
            (true, true) => {
                faults.invalid_as(
                    &item,
                    &Value::from("resource"),
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (false, false) => faults.required(&item, "one of fieldRef and resourceFieldRef is required"),
            _ => {}
        }
        environment::field_reference(&field, Shower::File, faults);
        environment::resource_reference(&resource, faults);
        if resource.is_said() && !resource.field("containerName").is_said() {
            faults.required(&resource.field("containerName"), "");
        }
    }
}

/// One source of a projection. `paths` are those of the sources before it: no two may claim one.
fn projection<'a>(projected: &At<'_>, part: &At<'a>, paths: &mut BTreeSet<&'a str>, faults: &mut Faults) {
    let mut claim = |path: &'a str, said_of: &str, faults: &mut Faults| {
        if !path.is_empty() && !paths.insert(path) {
            faults.invalid_as(projected, &Value::from(said_of), "conflicting duplicate paths");
        }
    };
    let mut said = 0;
    for name in ["configMap", "secret", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"] {
        let source = part.field(name);
        if !source.is_said() {
            continue;
        }
        said += 1;
        let items = part.value[name]["items"].as_array().into_iter().flatten();
        let claimed = items.filter_map(|item| item["path"].as_str());
        match name {
            "configMap" | "secret" => {
                named(&source.field("name"), faults);
                files(&source.field("items"), faults);
                claimed.for_each(|path| claim(path, source.value["name"].as_str().unwrap_or(""), faults));
            }
            "downwardAPI" => {
                downward(&source.field("items"), faults);
                claimed.for_each(|path| claim(path, path, faults));
            }
            "serviceAccountToken" => token(&source, faults),
            _ => {}
        }
    }
    match said {
        0 => faults.required(part, "must specify a volume type"),
        1 => {}
        _ => faults.forbidden(part, "may not specify more than 1 volume type"),
    }
}

fn token(source: &At<'_>, faults: &mut Faults) {
    file_path(&source.field("path"), faults);
    let expiry = source.field("expirationSeconds");
    match expiry.number() {
        Some(seconds) if seconds < TOKEN_SECONDS_MIN => {
            faults.invalid(&expiry, "may not specify a duration less than 10 minutes");
        }
        Some(seconds) if seconds > TOKEN_SECONDS_MAX => {
            faults.invalid(&expiry, "may not specify a duration larger than 2^32 seconds");
        }
        _ => {}
    }
}

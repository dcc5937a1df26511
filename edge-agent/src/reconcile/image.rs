//! What a container stands on: its image, and what the image says about how it is run. A missing image is a reason to wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::environment;
use super::lifecycle::Waiting;
use super::limits;
use super::pod::{ContainerSpec, PodSpec, security, text};
use crate::image::{ImageFacts, Images, Reference};
use crate::runtime::Rootfs;

/// The image of one container on this device; `None` for a process of the host.
pub(super) fn find(
    spec: &PodSpec<'_>,
    container: &ContainerSpec<'_>,
    images: &Images,
) -> Result<Option<Arc<ImageFacts>>, Waiting> {
    if !spec.isolated() {
        return Ok(None);
    }
    let image = text(container.value, "image");
    if let Err(error) = Reference::parse(image) {
        return Err(("InvalidImageName".into(), error.to_string()));
    }
    if let Some(found) = images.resolve(image) {
        return Ok(Some(found.clone()));
    }
    let how = format!("bring it with: flotilla agent image import --data DIR PATH --name {image}");
    Err(match text(container.value, "imagePullPolicy") {
        "Never" => {
            let message = format!("container image {image:?} is not present with pull policy of Never: {how}");
            ("ErrImageNeverPull".into(), message)
        }
        _ => {
            let message = format!("image {image:?} is not on this device, and the agent pulls none: {how}");
            ("ImagePullBackOff".into(), message)
        }
    })
}

/// Program and arguments as Kubernetes puts them together: `command` replaces entrypoint and cmd, `args` replaces cmd alone.
pub(super) fn argv(
    container: &ContainerSpec<'_>,
    image: Option<&ImageFacts>,
    environment: &BTreeMap<String, String>,
) -> Result<Vec<String>, String> {
    let Some(image) = image else { return environment::argv(container, environment) };
    if !container.words("command").is_empty() {
        return environment::argv(container, environment);
    }
    let mut argv = image.entrypoint.clone();
    if container.words("args").is_empty() {
        argv.extend(image.cmd.iter().cloned());
    } else {
        argv.extend(environment::argv(container, environment)?);
    }
    match argv.iter().find(|word| word.contains('\0')) {
        Some(_) => Err("a word of the image's entrypoint holds a NUL character, which no process can be given".into()),
        None if argv.is_empty() => Err("no command specified, and the image brings none: set command".into()),
        None => Ok(argv),
    }
}

/// Who a container runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// From the image's `/etc/group`.
    pub(super) groups: Vec<u32>,
    pub(super) home: Option<String>,
}

/// The manifest's user and group, else the image's. Without a group of its own a user has the one its account says, else 0.
pub(super) fn user(pod_spec: &Value, container: &Value, image: Option<&ImageFacts>) -> Result<User, String> {
    let number = |field: &str| {
        let value = security(pod_spec, container, field)?;
        value.as_u64().and_then(|id| u32::try_from(id).ok())
    };
    let (wanted_uid, wanted_gid) = (number("runAsUser"), number("runAsGroup"));
    let Some(image) = image else {
        return Ok(User { uid: wanted_uid, gid: wanted_gid, ..User::default() });
    };
    let own = &image.user;
    let unknown = || {
        format!(
            "the image's user {:?} is in neither its /etc/passwd nor its /etc/group: set securityContext.runAsUser",
            own.text
        )
    };
    let uid = wanted_uid.or(own.uid).ok_or_else(unknown)?;
    let account = image.account(uid);
    let gid = match wanted_uid {
        // An image imported with a group nobody knows cannot say which group that is.
        None => wanted_gid.or(own.gid).ok_or_else(unknown)?,
        Some(_) => wanted_gid.unwrap_or_else(|| account.map_or(0, |account| account.gid)),
    };
    if let Some(refused) = limits::root_is_refused(pod_spec, container, uid) {
        return Err(refused);
    }
    let groups = account.map(|account| account.groups.clone()).unwrap_or_default();
    let home = account.map(|account| account.home.clone()).filter(|home| !home.is_empty());
    Ok(User { uid: Some(uid), gid: Some(gid), groups, home })
}

/// The manifest's working directory, else the image's, else the root.
pub(super) fn working_dir(container: &ContainerSpec<'_>, image: Option<&ImageFacts>) -> String {
    let of_image = image.map(|image| image.working_dir.as_str()).filter(|folder| !folder.is_empty());
    match (text(container.value, "workingDir"), of_image) {
        ("", Some(folder)) => folder.to_owned(),
        _ => container.working_dir().to_owned(),
    }
}

pub(super) fn rootfs(container: &ContainerSpec<'_>, image: &ImageFacts) -> Rootfs {
    let own = container.value.get("securityContext");
    let read_only = own.and_then(|own| own.get("readOnlyRootFilesystem")).and_then(Value::as_bool);
    Rootfs {
        image: text(container.value, "image").to_owned(),
        image_digest: image.digest.clone(),
        lower_dirs: image.lower_dirs.clone(),
        read_only: read_only.unwrap_or(false),
    }
}

/// What a container has from its image and the manifest does not say; names below are as the image orders them, the last counts.
pub(super) fn environment(image: Option<&ImageFacts>, user: &User) -> BTreeMap<String, String> {
    let of_image = image.into_iter().flat_map(|image| image.env.iter().cloned());
    let home = user.home.iter().map(|home| ("HOME".to_owned(), home.clone()));
    home.chain(of_image).filter(|(name, value)| is_variable(name, value)).collect()
}

/// Whether a process can be given it; an image that says otherwise is run without it.
fn is_variable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}

/// Which images pods use: manifest digest -> `namespace/name`.
pub type ImageUses = BTreeMap<String, BTreeSet<String>>;

pub(super) fn note_use(uses: &mut ImageUses, digest: &str, namespace: &str, name: &str) {
    if !digest.is_empty() {
        uses.entry(digest.to_owned()).or_default().insert(format!("{namespace}/{name}"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

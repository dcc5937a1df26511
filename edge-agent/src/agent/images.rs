//! Which images pods use, kept on the disk for the commands that remove them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Agent;
use crate::image::Images;
use crate::reconcile::ImageUses;
use crate::runtime::Runtime;

/// kubelet's `nodeStatusMaxImages`.
const SHOWN_LEN_MAX: usize = 50;
/// kubelet's bound of names of one image.
const NAMES_LEN_MAX: usize = 5;

/// What was written last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pinned {
    generation: u64,
    uses: ImageUses,
}

impl<R: Runtime> Agent<R> {
    /// Makes durable which images must stay. False: they changed under the plan, which has to be made again. A disk that takes nothing
    /// stops no workload; then only `--force` and a race could take an image away from a pod that starts.
    pub(super) fn pin_images(&mut self, images: &Images, uses: ImageUses) -> bool {
        let wanted = Pinned { generation: images.generation, uses };
        if self.state.pinned.as_ref() == Some(&wanted) {
            return true;
        }
        if wanted == Pinned::default() {
            // A device without images has nothing to write down.
            self.state.pinned = Some(wanted);
            return true;
        }
        match self.images.pin(&wanted.uses, wanted.generation) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                let error = crate::enrolment::chain(&error);
                tracing::error!(%error, "which images pods use is not on the disk; workloads go on");
                return true;
            }
        }
        let nameless = images
            .by_digest
            .keys()
            .any(|digest| !wanted.uses.contains_key(digest) && images.names_of(digest).next().is_none());
        self.state.pinned = Some(wanted);
        if nameless {
            let store = self.images.clone();
            drop(tokio::task::spawn_blocking(move || {
                if let Err(error) = store.collect() {
                    let error = crate::enrolment::chain(&error);
                    tracing::warn!(%error, "an unused image could not be removed; it is tried again");
                }
            }));
        }
        true
    }
}

/// `images` of a NodeStatus, the largest first, as kubelet orders them.
pub(super) fn shown(images: &Arc<Images>) -> Value {
    let mut all: Vec<_> = images.by_digest.iter().collect();
    all.sort_by_key(|(digest, facts)| (std::cmp::Reverse(facts.size_bytes), (*digest).clone()));
    let one = |(digest, facts): (&String, &Arc<crate::image::ImageFacts>)| {
        let names = images.names_of(digest).flat_map(|name| [Images::image_id(name, digest), name.clone()]);
        let names: Vec<String> = names.take(NAMES_LEN_MAX).collect();
        json!({"names": names, "sizeBytes": facts.size_bytes})
    };
    all.into_iter()
        .filter(|(digest, _)| images.names_of(digest).next().is_some())
        .take(SHOWN_LEN_MAX)
        .map(one)
        .collect()
}

//! What a saved document says of itself at its beginning, so that two of one history are told apart without reading either.
//!
//! Automerge's storage format (automerge.org/automerge-binary-format-spec): a chunk is four magic bytes, four of a checksum, its type,
//! its length, its content; a document's content begins with its actors and its heads. Numbers are unsigned LEB128.

use automerge::ChangeHash;

use super::Document;
use crate::channel::Hash;

const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
const CHECKSUM_LEN: usize = 4;
const TYPE_DOCUMENT: u8 = 0;
/// Digits of a 64-bit number.
const LEB128_LEN_MAX: u32 = 10;

/// The hashes of a saved document's newest changes; nothing if it is not one chunk, as [`Document::save`] makes it. Nobody has looked
/// whether the rest is a document.
pub(crate) fn heads_of(saved: &[u8]) -> Option<Vec<Hash>> {
    let mut rest = saved.strip_prefix(&MAGIC)?.get(CHECKSUM_LEN..)?.strip_prefix(&[TYPE_DOCUMENT])?;
    if length(&mut rest)? != rest.len() {
        return None;
    }
    for _ in 0..length(&mut rest)? {
        let actor_len = length(&mut rest)?;
        rest = rest.get(actor_len..)?;
    }
    let hashes_len = length(&mut rest)?.checked_mul(size_of::<Hash>())?;
    rest.get(..hashes_len)?.chunks_exact(size_of::<Hash>()).map(|hash| Hash::try_from(hash).ok()).collect()
}

fn length(rest: &mut &[u8]) -> Option<usize> {
    let mut value: u64 = 0;
    for digit in 0..LEB128_LEN_MAX {
        let (byte, more) = rest.split_first()?;
        *rest = more;
        value |= u64::from(byte & 0x7f).checked_shl(7 * digit)?;
        if byte & 0x80 == 0 {
            return usize::try_from(value).ok();
        }
    }
    None
}

impl Document {
    /// Whether its history has all of these changes.
    pub(crate) fn holds(&mut self, changes: &[Hash]) -> bool {
        changes.iter().all(|hash| self.doc.get_change_meta_by_hash(&ChangeHash(*hash)).is_some())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::{Edit, Rollouts};
    use super::*;

    fn edited(document: &mut Document, value: u32) {
        let (object, none) = (json!({"value": value}), Rollouts::new());
        let edit = Edit { object: &object, rollouts: &none, author: "admin", time_ms: 0 };
        document.edit(edit, &|_| None).unwrap();
    }

    fn created() -> Document {
        let (object, none) = (json!({"value": 0}), Rollouts::new());
        let edit = Edit { object: &object, rollouts: &none, author: "admin", time_ms: 0 };
        Document::create(edit, 1, &|_| None, [1; 8]).unwrap()
    }

    proptest! {
        /// Whatever two writers did of a history, what is read at the beginning is what the document says.
        #[test]
        fn heads_are_those_of_the_document(steps in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..60)) {
            let mut one = created();
            let mut other = Document::load(&one.save()).unwrap().with_actor([2; 8]);
            for (number, (first, meet)) in (1..).zip(steps) {
                edited(if first { &mut one } else { &mut other }, number);
                if meet {
                    one.merge(&mut other).unwrap();
                }
                let saved = one.save();
                prop_assert_eq!(heads_of(&saved).unwrap(), one.heads());
                let heads = heads_of(&other.save()).unwrap();
                let all = one.holds(&heads);
                prop_assert_eq!(all, one.merge(&mut other).unwrap() == super::super::DocumentApplied::Duplicate);
            }
        }

        #[test]
        fn damaged_bytes_are_answered(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut saved = created().save();
            let place = at.index(saved.len());
            saved[place] = byte;
            saved.truncate(cut.index(saved.len() + 1));
            drop(heads_of(&saved));
        }
    }

    #[test]
    fn what_is_no_single_chunk_has_no_heads() {
        let saved = created().save();
        assert_eq!(heads_of(&saved).map(|heads| heads.len()), Some(1));
        let twice = [saved.clone(), saved.clone()].concat();
        assert_eq!(heads_of(&twice), None);
        assert_eq!(heads_of(&saved[..saved.len() - 1]), None);
        assert_eq!(heads_of(&[]), None);
    }
}

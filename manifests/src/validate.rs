//! The rules of every served kind beyond its schema; all faults at once, each with its path, in kube-apiserver's words.

use crate::api_error::Violation;
use crate::object::Object;

/// Everything wrong with a defaulted object, wrong types included (`schema::type_errors` need not be asked before).
pub fn object(object: &Object) -> Vec<Violation> {
    unimplemented!("{object:?}")
}

/// What an update may not change: `old` is stored, `new` is to replace it; both are defaulted. Call [`object`] for `new` as well.
pub fn update(old: &Object, new: &Object) -> Vec<Violation> {
    unimplemented!("{old:?} {new:?}")
}

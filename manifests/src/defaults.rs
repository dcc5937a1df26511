//! Kubernetes' defaults for every served kind, from its documentation. Idempotent.

use crate::object::Object;

/// Fills what the user left out, as kube-apiserver stores it: field defaults of the kind, `stringData` of a Secret merged into `data`,
/// the name label and finalizer of a Namespace, the `default` ServiceAccount of a Pod. The name must be final. Leaves values of a wrong
/// type alone (`schema::type_errors` names them). Applying it again changes nothing.
pub fn apply(object: &mut Object) {
    unimplemented!("{object:?}")
}

//! What every hub holds before anyone has written: namespaces, their ServiceAccounts, the runtime class of plain processes,
//! the system's priority classes.

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use serde_json::json;

use crate::admission::{default_account, set_label};
use crate::leases::NODE_LEASES;
use crate::priority;
use crate::store::Batch;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", NODE_LEASES];

/// Creates what is missing; changes nothing that is there.
pub(crate) fn seed(batch: &mut Batch<'_>) -> Result<(), ApiError> {
    for name in NAMESPACES {
        let mut namespace = Object::empty(&kind::NAMESPACE, "", name);
        set_label(&mut namespace, "kubernetes.io/metadata.name", name);
        namespace.value_mut()["spec"] = json!({"finalizers": ["kubernetes"]});
        namespace.value_mut()["status"] = json!({"phase": "Active"});
        ensure(batch, namespace)?;
        ensure(batch, default_account(name))?;
    }
    let mut class = Object::empty(&kind::RUNTIME_CLASS, "", "process");
    class.value_mut()["handler"] = json!("process");
    ensure(batch, class)?;
    for class in priority::SYSTEM {
        ensure(batch, priority::system_class(class))?;
    }
    Ok(())
}

fn ensure(batch: &mut Batch<'_>, object: Object) -> Result<(), ApiError> {
    if batch.get(&object.key()).is_none() {
        batch.create(object)?;
    }
    Ok(())
}

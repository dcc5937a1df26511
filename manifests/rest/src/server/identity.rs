//! From a verified client certificate to a user. Pure.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::backend::User;

/// Groups read from one certificate.
const GROUPS_MAX: usize = 64;

/// Common name -> user, organisations -> groups, as kube-apiserver does. `None` without exactly one common name.
pub(super) fn user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok().filter(|name| !name.is_empty())?.to_owned();
    if names.next().is_some() {
        return None;
    }
    let groups = parsed
        .subject()
        .iter_organization()
        .take(GROUPS_MAX)
        .filter_map(|group| group.as_str().ok().map(str::to_owned));
    Some(User { name, groups: groups.collect() })
}

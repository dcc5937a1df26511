//! The life of each pod, decided.
use super::*;
pub(super) fn plan(_: &DesiredPods, _: &Observed, _: &History, _: &Place) -> Plan { unimplemented!("bodies follow") }

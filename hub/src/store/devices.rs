//! The table of enrolled devices.

use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::identity::{PublicKey, SealingPublicKey};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Batch, StoreError};

/// Annotation of a Node: when its device was last heard (RFC 3339).
pub(crate) const LAST_SEEN_ANNOTATION: &str = "flotilla.dev/last-seen";

/// Annotation of a shown Node: whether its device holds what the hub wants of it. Never stored.
pub(crate) const SYNC_ANNOTATION: &str = "flotilla.dev/sync";

/// Annotation of a shown Node in contact: the road its session takes. Never stored.
pub(crate) const ROAD_ANNOTATION: &str = "flotilla.dev/road";

/// A device that has enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) node: String,
    /// Uid of its Node: survives re-enrolment.
    pub(crate) uid: String,
    pub(crate) fleet: String,
    pub(crate) key: PublicKey,
    pub(crate) sealing: SealingPublicKey,
    /// The newest life of its database.
    pub(crate) incarnation: u64,
    pub(crate) last_contact: Timestamp,
}

const COLUMNS: &str = "node, uid, fleet, key, sealing, incarnation, last_contact";

fn device(row: &Row<'_>) -> rusqlite::Result<Device> {
    Ok(Device {
        node: row.get(0)?,
        uid: row.get(1)?,
        fleet: row.get(2)?,
        key: PublicKey(row.get(3)?),
        sealing: SealingPublicKey(row.get(4)?),
        incarnation: row.get::<_, i64>(5)?.cast_unsigned(),
        last_contact: Timestamp(row.get::<_, i64>(6)?.cast_unsigned()),
    })
}

pub(super) fn all(connection: &Connection) -> Result<Vec<Device>, StoreError> {
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM device"))?;
    let rows = statement.query_map([], device)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn read(connection: &Connection, node: &str) -> Result<Option<Device>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM device WHERE node = ?1"))?;
    Ok(statement.query_row([node], device).optional()?)
}

impl Batch<'_> {
    pub(crate) fn devices(&self) -> Result<Vec<Device>, StoreError> {
        all(self.transaction)
    }

    pub(crate) fn device(&self, node: &str) -> Result<Option<Device>, StoreError> {
        read(self.transaction, node)
    }

    pub(crate) fn put_device(&mut self, device: &Device) -> Result<(), StoreError> {
        if self.device(&device.node)?.is_some_and(|known| known.sealing != device.sealing) {
            self.resealed.insert(device.node.clone());
        }
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO device (node, uid, fleet, key, sealing, incarnation, last_contact)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                device.node,
                device.uid,
                device.fleet,
                device.key.0,
                device.sealing.0,
                device.incarnation.cast_signed(),
                device.last_contact.0.cast_signed()
            ])?;
        Ok(())
    }

    /// Notes when a device was last heard, and shows it at its Node.
    pub(crate) fn set_last_contact(&mut self, node: &str, at: Timestamp) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("UPDATE device SET last_contact = max(last_contact, ?2) WHERE node = ?1")?
            .execute(params![node, at.0.cast_signed()])?;
        let key = ObjectKey::of(&kind::NODE, "", node);
        self.update(&key, |object| object.set_annotation(LAST_SEEN_ANNOTATION, &at.to_rfc3339()))?;
        Ok(())
    }
}

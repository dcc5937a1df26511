use std::sync::Arc;

use flotilla_manifests::time::Timestamp;

use super::*;
use crate::config::Retention;
use crate::store::Store;

fn store(folder: &std::path::Path) -> Store {
    Store::open(&folder.join("hub.sqlite"), Retention::default(), Arc::new(|| Timestamp(1))).unwrap()
}

/// Puts an item of a document into a channel, as publication does.
async fn publish(store: &Store, channel: &'static str, uid: &'static str) {
    let write = store.write(move |batch| {
        let values = params![channel, format!("{channel}/{uid}"), uid];
        let sql = "INSERT INTO item (channel, source, id, digest, seq, time) VALUES (?1, ?2, ?3, x'', 1, 1)";
        batch.transaction.execute(sql, values).map_err(StoreError::from)?;
        Ok(())
    });
    write.await.unwrap();
}

async fn name(store: &Store, uid: &'static str, large: Vec<Blob>, names: Vec<BlobRef>) {
    store.write(move |batch| Ok(batch.put_document_blobs(uid, &large, &names)?)).await.unwrap();
}

fn count(store: &Store, table: &str) -> i64 {
    store.logs().reader().query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_device_reads_what_its_channels_name_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let content: Vec<u8> = (0..700_000_u32).flat_map(u32::to_be_bytes).collect();
    let blob = Blob::of(content.clone().into());
    name(&store, "one", vec![blob.clone()], vec![blob.name]).await;
    name(&store, "two", Vec::new(), vec![blob.name]).await;
    publish(&store, "device/a", "one").await;
    publish(&store, "device/b", "other").await;
    let channel = |text: &str| [ChannelName::parse(text).unwrap()];
    let read = |text: &str, offset, len| store.logs().read_blob(&channel(text), &blob.name.hash, offset, len).unwrap();
    assert_eq!(read("device/b", 0, 10), None, "it names nothing that b reads");
    // Ranges within a piece, over the edges of pieces, and beyond the end.
    for (offset, len) in [(0, 10), (5, 600_000), (262_140, 10), (2_799_990, 100)] {
        let end = content.len().min(offset + len);
        assert_eq!(read("device/a", offset as u64, len).unwrap(), content[offset..end], "{offset}");
    }
    assert_eq!(store.logs().named_blobs(&channel("device/a")).unwrap(), [blob.name]);
    assert_eq!(store.logs().named_blobs(&channel("device/b")).unwrap(), []);
    assert_eq!(store.logs().missing_blobs(9).unwrap(), []);

    name(&store, "one", Vec::new(), Vec::new()).await;
    assert_eq!(read("device/a", 0, 10), None);
    assert_eq!((count(&store, "blob"), count(&store, "blob_reference")), (1, 1), "another document names it still");
    name(&store, "two", Vec::new(), Vec::new()).await;
    assert_eq!((count(&store, "blob"), count(&store, "blob_piece")), (0, 0), "collected with the last that named it");
}

#[tokio::test]
async fn what_a_document_names_and_is_not_here_is_taken_from_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let content = [vec![1; 3000], vec![2; 3000]].concat();
    let blob = Blob::of(content.clone().into());
    name(&store, "one", Vec::new(), vec![blob.name]).await;
    let wanted = |offset| vec![BlobWant { name: blob.name, offset }];
    assert_eq!(store.logs().missing_blobs(9).unwrap(), wanted(0));
    let give = async |offset: u64, bytes: Vec<u8>| {
        let named = blob.name;
        store.write(move |batch| Ok(batch.store_blob(&named, offset, &bytes)?)).await.unwrap()
    };
    assert_eq!(give(3000, vec![2; 10]).await, BlobStored::Unwanted, "it does not follow");
    assert_eq!(give(0, content[..3000].to_vec()).await, BlobStored::Partly);
    assert_eq!(store.logs().missing_blobs(9).unwrap(), wanted(3000));
    assert_eq!(give(3000, vec![9; 3001]).await, BlobStored::Unwanted, "it is too long");
    assert_eq!(give(3000, vec![9; 3000]).await, BlobStored::Damaged);
    assert_eq!(store.logs().missing_blobs(9).unwrap(), wanted(0));
    give(0, content[..3000].to_vec()).await;
    assert_eq!(give(3000, content[3000..].to_vec()).await, BlobStored::Whole);
    assert_eq!(give(0, content[..3000].to_vec()).await, BlobStored::Unwanted);
    let hash = blob.name.hash;
    assert_eq!(store.write(move |batch| Ok(batch.blob(&hash))).await.unwrap().unwrap(), content);
}

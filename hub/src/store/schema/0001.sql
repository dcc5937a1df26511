-- Small numbers of the hub: incarnation, counters.
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

-- Current state, folded.
CREATE TABLE object (
    api_group TEXT NOT NULL, kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    version INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (api_group, kind, namespace, name)
) WITHOUT ROWID;

-- The commit log for watches. `body` is what the object was before (for a deletion: was last; NULL when it is new): what it
-- became is the body of its next event, or its row in `object`.
CREATE TABLE event (
    version INTEGER PRIMARY KEY, change INTEGER NOT NULL,
    api_group TEXT NOT NULL, kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    time INTEGER NOT NULL, body BLOB
);

-- Rows that could not be read at a start: kept, shown, out of the way.
CREATE TABLE set_aside (id INTEGER PRIMARY KEY, place TEXT NOT NULL, why TEXT NOT NULL, time INTEGER NOT NULL, body BLOB NOT NULL);

-- What devices may move to.
CREATE TABLE threshold (workload TEXT NOT NULL, number TEXT NOT NULL, threshold INTEGER NOT NULL, PRIMARY KEY (workload, number)) WITHOUT ROWID;
CREATE TABLE granted (workload TEXT NOT NULL, node TEXT NOT NULL, number TEXT NOT NULL, PRIMARY KEY (workload, node)) WITHOUT ROWID;

-- Documents: the saved CRDT of one manifest, and the digest of the content it stands at.
CREATE TABLE document (uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL, digest BLOB NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;

-- What each channel holds now of the hub's own log: `source` is what the item is made from, `digest` that of its content, `seq`
-- the newest record about it. `value` is that of a register; a document's state is in `document`.
CREATE TABLE item (
    channel TEXT NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL, digest BLOB NOT NULL, seq INTEGER NOT NULL,
    time INTEGER NOT NULL, value BLOB, PRIMARY KEY (channel, source)
) WITHOUT ROWID;

-- Logs of the channels, as signed batches.
CREATE TABLE batch (
    channel TEXT NOT NULL, writer BLOB NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (channel, writer, first_seq)
) WITHOUT ROWID;
-- Where each log ends, and up to which record it has been truncated.
CREATE TABLE head (
    channel TEXT NOT NULL, writer BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    floor INTEGER NOT NULL, records INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (channel, writer)
) WITHOUT ROWID;
CREATE TABLE writer (id BLOB PRIMARY KEY, hub INTEGER NOT NULL, chain BLOB NOT NULL) WITHOUT ROWID;

-- What devices hold in their own logs: the folded items of their channels.
CREATE TABLE device_item (channel TEXT NOT NULL, id TEXT NOT NULL, state BLOB NOT NULL, PRIMARY KEY (channel, id)) WITHOUT ROWID;

-- The newest observation of each subject of a device.
CREATE TABLE observation (
    node TEXT NOT NULL, subject TEXT NOT NULL, incarnation INTEGER NOT NULL, boot INTEGER NOT NULL, seq INTEGER NOT NULL,
    time INTEGER NOT NULL, PRIMARY KEY (node, subject)
) WITHOUT ROWID;

CREATE TABLE token (id TEXT PRIMARY KEY, fleet TEXT NOT NULL, expires INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE device (
    node TEXT PRIMARY KEY, uid TEXT NOT NULL, fleet TEXT NOT NULL, key BLOB NOT NULL, sealing BLOB NOT NULL,
    incarnation INTEGER NOT NULL, last_contact INTEGER NOT NULL
) WITHOUT ROWID;

-- The installation's keys, the hub's writer, its addresses. The whole file is secret: mode 0600.
CREATE TABLE setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, user TEXT NOT NULL, field_manager TEXT, verb TEXT NOT NULL,
    api_group TEXT NOT NULL, kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, result TEXT NOT NULL
);

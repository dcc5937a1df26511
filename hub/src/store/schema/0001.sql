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

-- Documents: the saved CRDT of one manifest.
CREATE TABLE document (uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;

-- What each channel holds now, of the hub's own log. `needs` and `mark` are what the signed list says of the item.
CREATE TABLE item (
    channel TEXT NOT NULL, item TEXT NOT NULL, digest BLOB NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (channel, item)
) WITHOUT ROWID;

-- Logs of the channels: the hub's own and what devices wrote.
CREATE TABLE record (
    channel TEXT NOT NULL, writer BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (channel, writer, seq)
) WITHOUT ROWID;
CREATE TABLE head (
    channel TEXT NOT NULL, writer BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL, signed BLOB NOT NULL,
    floor INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (channel, writer)
) WITHOUT ROWID;

-- The newest observation of each subject of a device.
CREATE TABLE observation (
    node TEXT NOT NULL, subject TEXT NOT NULL, incarnation INTEGER NOT NULL, boot INTEGER NOT NULL, seq INTEGER NOT NULL,
    time INTEGER NOT NULL, PRIMARY KEY (node, subject)
) WITHOUT ROWID;

CREATE TABLE token (
    id TEXT PRIMARY KEY, secret_digest BLOB NOT NULL, node TEXT, fleet TEXT NOT NULL, uses_left INTEGER NOT NULL, expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE device (
    node TEXT PRIMARY KEY, uid TEXT NOT NULL, fleet TEXT NOT NULL, key BLOB NOT NULL, incarnation INTEGER NOT NULL,
    enrolled INTEGER NOT NULL, last_contact INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, user TEXT NOT NULL, field_manager TEXT, verb TEXT NOT NULL,
    api_group TEXT NOT NULL, kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, result TEXT NOT NULL
);

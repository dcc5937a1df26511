-- What devices gave back of the logs of this hub's earlier lives, until it is adopted: per channel and item the newest content, and
-- the removal if there was one; `deleted`: the object is gone, not only out of the channel; `listed`: known only from a list that
-- does not name it.
CREATE TABLE learned (
    channel TEXT NOT NULL, id TEXT NOT NULL, state BLOB, removed BLOB, deleted INTEGER NOT NULL, listed INTEGER NOT NULL,
    PRIMARY KEY (channel, id)
) WITHOUT ROWID;

-- Deleted objects that channels held: named in signed lists for a while, so that a hub with an older database hears of them.
CREATE TABLE tombstone (channel TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL, PRIMARY KEY (channel, id)) WITHOUT ROWID;

-- The lives of this database, each with the writer of its logs; `item.life` is the one that stated the item (0: the first known).
CREATE TABLE life (incarnation INTEGER PRIMARY KEY, writer BLOB NOT NULL) WITHOUT ROWID;
ALTER TABLE item ADD COLUMN life INTEGER NOT NULL DEFAULT 0;

-- Observations that came while the hub was learning, to be read again once it knows what they speak of.
CREATE TABLE deferred (node TEXT NOT NULL, subject TEXT NOT NULL, body BLOB, PRIMARY KEY (node, subject)) WITHOUT ROWID;

-- Documents that left a channel while their objects lived on: should the object be deleted later, the channel's readers hear of it.
CREATE TABLE withdrawn (id TEXT NOT NULL, channel TEXT NOT NULL, PRIMARY KEY (id, channel)) WITHOUT ROWID;

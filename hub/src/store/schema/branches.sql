-- Batches and lists of other branches of this hub's own forked logs that devices gave back, by the hash of their last record or the digest of
-- the list: each is taken in once, or what was deleted since would come back.
CREATE TABLE branch (
    number INTEGER PRIMARY KEY, channel TEXT NOT NULL, writer BLOB NOT NULL, hash BLOB NOT NULL,
    UNIQUE (channel, writer, hash)
);

-- What was learned from such a branch stands in no log that other readers of the channel have: it is stated again.
ALTER TABLE learned ADD COLUMN branched INTEGER NOT NULL DEFAULT 0;

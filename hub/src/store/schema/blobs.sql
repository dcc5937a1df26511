-- Large values beside the documents, by digest. `whole`: all of `len` is in the pieces and its digest holds. A row stands for
-- every blob that a document names, present or not.
CREATE TABLE blob (hash BLOB PRIMARY KEY, len INTEGER NOT NULL, whole INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX blob_missing ON blob (hash) WHERE whole = 0;
CREATE TABLE blob_piece (hash BLOB NOT NULL, start INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (hash, start));
-- Which document names which blob: what a device may read follows from the channels the document is in.
CREATE TABLE blob_reference (hash BLOB NOT NULL, uid TEXT NOT NULL, PRIMARY KEY (hash, uid)) WITHOUT ROWID;
CREATE INDEX blob_reference_uid ON blob_reference (uid);
CREATE INDEX item_id ON item (id);

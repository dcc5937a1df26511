-- When a batch was appended, for retention by age.
ALTER TABLE batch ADD COLUMN time INTEGER NOT NULL DEFAULT 0;
UPDATE batch SET time = CAST(strftime('%s', 'now') AS INTEGER) * 1000;
CREATE INDEX batch_time ON batch (time);

-- Size of a document when its epoch began; 0 when that was before this was noted.
ALTER TABLE document ADD COLUMN fresh INTEGER NOT NULL DEFAULT 0;

-- Epochs a document has left: where each was cut, and of the newest the saved state, so that a change made there elsewhere is
-- understood when it arrives.
CREATE TABLE past_epoch (
    uid TEXT NOT NULL, epoch INTEGER NOT NULL, heads BLOB NOT NULL, state BLOB, time INTEGER NOT NULL, PRIMARY KEY (uid, epoch)
) WITHOUT ROWID;

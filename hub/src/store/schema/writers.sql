-- Writers of devices, in the order in which the hub met them (those that were known before, by chance): each life of a device's database
-- has one, and of very many the oldest are forgotten.
CREATE TABLE device_writer (number INTEGER PRIMARY KEY, node TEXT NOT NULL, writer BLOB NOT NULL UNIQUE);
CREATE INDEX device_writer_node ON device_writer (node, number);
INSERT OR IGNORE INTO device_writer (node, writer)
    SELECT substr(head.channel, length('device/') + 1), head.writer FROM head JOIN writer ON writer.id = head.writer
    WHERE NOT writer.hub AND head.channel LIKE 'device/%';

-- One that has said nothing yet is introduced again before it does.
DELETE FROM writer WHERE NOT hub AND id NOT IN (SELECT writer FROM device_writer);

-- From version 1 to 2: rows that keep their length, one index less to write for each consumer, counters.
-- What stands here is as version 2 was, and never changes again.

CREATE TEMP TABLE postbox_upgrade_event AS SELECT * FROM main.outbox_event;
CREATE TEMP TABLE postbox_upgrade_inbox AS SELECT * FROM main.inbox_event;
CREATE TEMP TABLE postbox_upgrade_sequence AS SELECT seq FROM main.sqlite_sequence WHERE name = 'outbox_event';
DROP VIEW main.outbox_event_readable;
DROP VIEW main.inbox_event_readable;
DROP TABLE main.inbox_event;
DROP TABLE main.outbox_event;

CREATE TABLE main.postbox_counter (
    singleton       INTEGER PRIMARY KEY CHECK (singleton = 1),
    processed       INTEGER NOT NULL DEFAULT 0,
    deleted         INTEGER NOT NULL DEFAULT 0,
    last_deleted    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE main.postbox_consumer (
    number          INTEGER PRIMARY KEY CHECK (number BETWEEN 1 AND 1048575),
    name            TEXT    NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255)
) STRICT;
CREATE TABLE main.outbox_event (
    seq             INTEGER PRIMARY KEY,
    id              BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    status          TEXT    NOT NULL DEFAULT 'pending'
                    CHECK (status = 'pending' OR status = 'processing' OR status = 'processed' OR status = 'failed' OR status = 'dead_letter'),
    attempt_count   INTEGER NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    available_at    INTEGER NOT NULL,
    lease_id        INTEGER NOT NULL DEFAULT -32768,
    created_at      INTEGER NOT NULL,
    changed_at      INTEGER,
    processed_at    INTEGER,
    updated_at      INTEGER GENERATED ALWAYS AS (coalesce(changed_at, processed_at, created_at)) VIRTUAL,
    payload_version INTEGER NOT NULL DEFAULT 1 CHECK (payload_version BETWEEN 1 AND 4294967295),
    event_name      TEXT    NOT NULL CHECK (length(event_name) BETWEEN 1 AND 255),
    source_module   TEXT    NOT NULL CHECK (length(source_module) BETWEEN 1 AND 127),
    aggregate_type  TEXT    NOT NULL CHECK (length(aggregate_type) BETWEEN 1 AND 127),
    aggregate_id    TEXT    NOT NULL CHECK (length(aggregate_id) BETWEEN 1 AND 255),
    causation_id    BLOB    CHECK (length(causation_id) = 16),
    correlation_id  TEXT    CHECK (length(correlation_id) BETWEEN 1 AND 255),
    traceparent     TEXT    CHECK (length(traceparent) BETWEEN 1 AND 255),
    deliver_to      TEXT,
    last_error      TEXT    CHECK (length(last_error) <= 1023),
    payload         TEXT    NOT NULL,
    metadata        TEXT
) STRICT;
CREATE INDEX main.outbox_event_due ON outbox_event (available_at) WHERE status = 'pending';
CREATE INDEX main.outbox_event_claimed ON outbox_event (available_at) WHERE status = 'processing';
CREATE INDEX main.outbox_event_dead ON outbox_event (status) WHERE status IN ('failed', 'dead_letter');
CREATE TABLE main.inbox_event (
    id              INTEGER PRIMARY KEY,
    event           INTEGER GENERATED ALWAYS AS (id >> 20) VIRTUAL,
    consumer_name   TEXT    NOT NULL CHECK (length(consumer_name) BETWEEN 1 AND 255),
    status          TEXT    NOT NULL DEFAULT 'received'
                    CHECK (status = 'received' OR status = 'processing' OR status = 'processed' OR status = 'failed' OR status = 'skipped'),
    attempt_count   INTEGER NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    gave_up         INTEGER NOT NULL DEFAULT 0 CHECK (gave_up = 0 OR gave_up = 1),
    last_error      TEXT    CHECK (length(last_error) <= 1023),
    processed_at    INTEGER,
    received_at     INTEGER,
    changed_at      INTEGER,
    created_at      INTEGER GENERATED ALWAYS AS (coalesce(received_at, processed_at)) VIRTUAL,
    updated_at      INTEGER GENERATED ALWAYS AS (coalesce(changed_at, processed_at)) VIRTUAL
) STRICT;
CREATE INDEX main.inbox_event_open ON inbox_event (consumer_name) WHERE status = 'received' OR status = 'processing' OR status = 'failed';
CREATE TRIGGER main.outbox_event_deleted AFTER DELETE ON outbox_event BEGIN
    DELETE FROM inbox_event WHERE id BETWEEN OLD.seq << 20 AND (OLD.seq << 20) + 1048575;
    UPDATE postbox_counter
    SET deleted = deleted + 1, last_deleted = max(last_deleted, OLD.seq), processed = processed - (OLD.status = 'processed');
END;

CREATE VIEW main.outbox_event_readable AS
SELECT seq,
       lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-'
             || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21)) AS id,
       event_name, source_module, aggregate_type, aggregate_id, status, attempt_count, last_error,
       CASE available_at WHEN 253402300799999999 THEN 'held until somebody subscribes'
                         ELSE strftime('%Y-%m-%dT%H:%M:%fZ', available_at / 1000000.0, 'unixepoch') END AS available_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', processed_at / 1000000.0, 'unixepoch') AS processed_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000000.0, 'unixepoch') AS updated_at,
       correlation_id,
       lower(substr(hex(causation_id), 1, 8) || '-' || substr(hex(causation_id), 9, 4) || '-' || substr(hex(causation_id), 13, 4) || '-'
             || substr(hex(causation_id), 17, 4) || '-' || substr(hex(causation_id), 21)) AS causation_id,
       traceparent, payload_version, deliver_to, payload, metadata
FROM outbox_event;

CREATE VIEW main.inbox_event_readable AS
SELECT i.id,
       lower(substr(hex(o.id), 1, 8) || '-' || substr(hex(o.id), 9, 4) || '-' || substr(hex(o.id), 13, 4) || '-'
             || substr(hex(o.id), 17, 4) || '-' || substr(hex(o.id), 21)) AS event,
       o.event_name, i.consumer_name, i.status, i.attempt_count, i.gave_up, i.last_error,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.processed_at / 1000000.0, 'unixepoch') AS processed_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.updated_at / 1000000.0, 'unixepoch') AS updated_at
FROM inbox_event i JOIN outbox_event o ON o.seq = i.event;

-- Claims become those of a box that nobody can have: their leases run out as they were to.
INSERT INTO main.outbox_event
    (seq, id, status, attempt_count, available_at, lease_id, created_at, changed_at, processed_at, payload_version, event_name,
     source_module, aggregate_type, aggregate_id, causation_id, correlation_id, traceparent, deliver_to, last_error, payload, metadata)
SELECT seq, id, status, attempt_count, available_at, CASE status WHEN 'pending' THEN -32768 WHEN 'processing' THEN 4294967296 ELSE 0 END,
       created_at, CASE status WHEN 'processing' THEN NULL WHEN 'processed' THEN NULL ELSE updated_at END, processed_at, payload_version,
       event_name, source_module, aggregate_type, aggregate_id, causation_id, correlation_id, traceparent, deliver_to, last_error,
       payload, metadata
FROM temp.postbox_upgrade_event ORDER BY seq;
INSERT INTO main.postbox_consumer (name) SELECT consumer_name FROM temp.postbox_upgrade_inbox GROUP BY consumer_name ORDER BY min(id);
INSERT INTO main.inbox_event
    (id, consumer_name, status, attempt_count, gave_up, last_error, processed_at, received_at, changed_at)
SELECT i.event << 20 | c.number, i.consumer_name, i.status, i.attempt_count, i.gave_up, i.last_error, i.processed_at, i.created_at,
       i.updated_at
FROM temp.postbox_upgrade_inbox i JOIN main.postbox_consumer c ON c.name = i.consumer_name ORDER BY 1;
-- Numbers are never used again, also where the last rows were deleted.
INSERT INTO main.postbox_counter (singleton, processed, deleted, last_deleted)
SELECT 1, count(*) FILTER (WHERE status = 'processed'), coalesce((SELECT seq FROM temp.postbox_upgrade_sequence), 0) - count(*),
       coalesce((SELECT seq FROM temp.postbox_upgrade_sequence), 0)
FROM main.outbox_event;
DROP TABLE temp.postbox_upgrade_event;
DROP TABLE temp.postbox_upgrade_inbox;
DROP TABLE temp.postbox_upgrade_sequence;

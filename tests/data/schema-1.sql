-- The whole schema of postbox, version 1. Every object that the library owns in the application's file stands here.
--
-- Times are Unix microseconds of the box's own clock. Ids are 16 bytes. The views at the end show both to people.

-- One row: what this file holds, so that `user_version` stays the application's.
CREATE TABLE postbox_schema (
    singleton       INTEGER PRIMARY KEY CHECK (singleton = 1),
    version         INTEGER NOT NULL,
    clock_mark      INTEGER NOT NULL DEFAULT 0          -- the box's time at its last close: time never starts before it
) STRICT;

-- What an operator changed; a key that is not here has the application's default.
CREATE TABLE postbox_setting (
    key             TEXT    NOT NULL PRIMARY KEY CHECK (length(key) BETWEEN 1 AND 255),
    value           TEXT    NOT NULL,                   -- JSON
    updated_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per event. Small columns come first, so that a claim and a settle never read a long payload's overflow pages.
CREATE TABLE outbox_event (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of publishing; never reused, or a stale ack could settle a new event
    id              BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    status          TEXT    NOT NULL DEFAULT 'pending'
                    CHECK (status = 'pending' OR status = 'processing' OR status = 'processed' OR status = 'failed' OR status = 'dead_letter'),
    attempt_count   INTEGER NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    -- The one clock column: publish delay, backoff and lease end. 253402300799999999 (the year 9999) while it is held for a first subscriber.
    available_at    INTEGER NOT NULL,
    -- The claim that owns the row while it is processing: its high 32 bits name the open box, its low 32 bits count that box's claims.
    -- No claim is negative, and none is 0. A pending row holds a value of full width, so that it does not grow when it is claimed;
    -- a finished row holds 0, which takes no bytes.
    lease_id        INTEGER NOT NULL DEFAULT -9223372036854775808,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    processed_at    INTEGER,
    payload_version INTEGER NOT NULL DEFAULT 1 CHECK (payload_version BETWEEN 1 AND 4294967295),
    event_name      TEXT    NOT NULL CHECK (length(event_name) BETWEEN 1 AND 255),
    source_module   TEXT    NOT NULL CHECK (length(source_module) BETWEEN 1 AND 127),
    aggregate_type  TEXT    NOT NULL CHECK (length(aggregate_type) BETWEEN 1 AND 127),
    aggregate_id    TEXT    NOT NULL CHECK (length(aggregate_id) BETWEEN 1 AND 255),
    causation_id    BLOB    CHECK (length(causation_id) = 16),
    correlation_id  TEXT    CHECK (length(correlation_id) BETWEEN 1 AND 255),
    traceparent     TEXT    CHECK (length(traceparent) BETWEEN 1 AND 255),
    deliver_to      TEXT,                               -- JSON array of the only consumers that are asked (replay); NULL is all
    resolution      TEXT,                               -- what an operator decided about a dead letter, and why
    last_error      TEXT    CHECK (length(last_error) <= 1023),
    payload         TEXT    NOT NULL,                   -- JSON, parsed by the API before it is written
    metadata        TEXT                                -- JSON
) STRICT;

-- Claiming reads this index and nothing else: history costs it nothing. Ties in available_at come out in order of seq.
CREATE INDEX outbox_event_live ON outbox_event (available_at) WHERE status IN ('pending', 'processing');
-- What a person has to look at.
CREATE INDEX outbox_event_dead ON outbox_event (status) WHERE status IN ('failed', 'dead_letter');

-- One row per event and consumer that has come to an outcome.
CREATE TABLE inbox_event (
    id              INTEGER PRIMARY KEY,
    event           INTEGER NOT NULL REFERENCES outbox_event (seq) ON DELETE CASCADE,
    consumer_name   TEXT    NOT NULL CHECK (length(consumer_name) BETWEEN 1 AND 255),
    status          TEXT    NOT NULL DEFAULT 'received'
                    CHECK (status = 'received' OR status = 'processing' OR status = 'processed' OR status = 'failed' OR status = 'skipped'),
    attempt_count   INTEGER NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),          -- failed attempts
    gave_up         INTEGER NOT NULL DEFAULT 0 CHECK (gave_up = 0 OR gave_up = 1),  -- failed for good: this consumer is not asked again
    last_error      TEXT    CHECK (length(last_error) <= 1023),
    processed_at    INTEGER,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    UNIQUE (event, consumer_name)
) STRICT;

-- A consumer's open work, without reading its history.
CREATE INDEX inbox_event_open ON inbox_event (consumer_name) WHERE status = 'received' OR status = 'processing' OR status = 'failed';

-- One row per link between entities of two modules. No foreign keys: modules do not know each other's tables.
CREATE TABLE integration_link (
    seq                 INTEGER PRIMARY KEY,
    id                  BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    source_module       TEXT    NOT NULL CHECK (length(source_module) BETWEEN 1 AND 127),
    source_entity_type  TEXT    NOT NULL CHECK (length(source_entity_type) BETWEEN 1 AND 127),
    source_entity_id    TEXT    NOT NULL CHECK (length(source_entity_id) BETWEEN 1 AND 255),
    target_module       TEXT    NOT NULL CHECK (length(target_module) BETWEEN 1 AND 127),
    target_entity_type  TEXT    NOT NULL CHECK (length(target_entity_type) BETWEEN 1 AND 127),
    target_entity_id    TEXT    NOT NULL CHECK (length(target_entity_id) BETWEEN 1 AND 255),
    link_type           TEXT    NOT NULL CHECK (link_type = 'reference' OR link_type = 'cascade' OR link_type = 'aggregate_root'),
    metadata            TEXT,                           -- JSON
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL
) STRICT;

CREATE INDEX integration_link_source ON integration_link (source_module, source_entity_type, source_entity_id);
CREATE INDEX integration_link_target ON integration_link (target_module, target_entity_type, target_entity_id);
CREATE INDEX integration_link_type ON integration_link (link_type);

-- For people with a `sqlite3` shell: ids as UUIDs, times as ISO 8601.
CREATE VIEW outbox_event_readable AS
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
       traceparent, payload_version, deliver_to, resolution, payload, metadata
FROM outbox_event;

CREATE VIEW inbox_event_readable AS
SELECT i.id,
       lower(substr(hex(o.id), 1, 8) || '-' || substr(hex(o.id), 9, 4) || '-' || substr(hex(o.id), 13, 4) || '-'
             || substr(hex(o.id), 17, 4) || '-' || substr(hex(o.id), 21)) AS event,
       o.event_name, i.consumer_name, i.status, i.attempt_count, i.gave_up, i.last_error,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.processed_at / 1000000.0, 'unixepoch') AS processed_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.updated_at / 1000000.0, 'unixepoch') AS updated_at
FROM inbox_event i JOIN outbox_event o ON o.seq = i.event;

CREATE VIEW integration_link_readable AS
SELECT lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-'
             || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21)) AS id,
       source_module || '/' || source_entity_type || '/' || source_entity_id AS source,
       target_module || '/' || target_entity_type || '/' || target_entity_id AS target,
       link_type, metadata,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000000.0, 'unixepoch') AS updated_at
FROM integration_link;

INSERT INTO postbox_schema (singleton, version) VALUES (1, 1);

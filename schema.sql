-- The whole schema of postbox, version 6. Every object that the library owns in the application's file stands here, but for one index that
-- src/outbox/order.sql makes where somebody asks for order.
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

-- What would take long to count: rows of outbox_event. All but `processed` is also counted anew where it is little.
CREATE TABLE postbox_counter (
    singleton       INTEGER PRIMARY KEY CHECK (singleton = 1),
    processed       INTEGER NOT NULL DEFAULT 0,         -- of those that are there
    deleted         INTEGER NOT NULL DEFAULT 0,         -- rows that were there once
    last_deleted    INTEGER NOT NULL DEFAULT 0          -- the greatest `seq` of them
) STRICT;

-- Consumers that inbox rows speak of, each with a number that never changes.
CREATE TABLE postbox_consumer (
    number          INTEGER PRIMARY KEY CHECK (number BETWEEN 1 AND 1048575),
    name            TEXT    NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255)
) STRICT;

-- What is paused: the work of a consumer, or all events of a name. Events that wait for it are due in the year 9999, a microsecond
-- before those that are held. A pause that is over has a negative `until` of its own, until what waited for it has been let go.
CREATE TABLE postbox_pause (
    kind            TEXT    NOT NULL CHECK (kind = 'consumer' OR kind = 'event_name'),
    name            TEXT    NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    reason          TEXT    CHECK (length(reason) <= 1023),
    since           INTEGER NOT NULL,
    until           INTEGER,                            -- NULL: until somebody resumes it
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- One row per event. Small columns come first, so that a claim and a settle never read a long payload's overflow pages.
--
-- A row is as long when it is published as ever after (until it fails): SQLite fills its pages with rows as they come, and
-- one that grew would split its page. `status`, `lease_id`, `changed_at` and `processed_at` together take 17 bytes while it is
-- pending, 16 while it is processing, 17 when it is processed.
CREATE TABLE outbox_event (
    -- The order of publishing: one more than any row has or had. Never reused, or a stale ack could settle a new event. Without
    -- AUTOINCREMENT, which writes one more page in each transaction: what was deleted is remembered when it is deleted.
    -- At most 8796093022207 (43 bits), so that it fits an inbox row's id with a consumer's number behind it.
    seq             INTEGER PRIMARY KEY,
    id              BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    status          TEXT    NOT NULL DEFAULT 'pending'
                    CHECK (status = 'pending' OR status = 'processing' OR status = 'processed' OR status = 'failed' OR status = 'dead_letter'),
    attempt_count   INTEGER NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    -- The one clock column: publish delay, backoff and lease end. 253402300799999999 (the year 9999) while it is held for a first subscriber,
    -- and one to four microseconds before while it waits for what is paused, for its turn, for room with a consumer that has limits, and for a
    -- release that can read its payload.
    available_at    INTEGER NOT NULL,
    -- The claim that owns the row while it is processing, in 6 bytes: the open box, and in the low 24 bits the count of its claims.
    -- -32768 (2 bytes) while it is pending, 0 (no byte) when it is finished: no claim is either.
    lease_id        INTEGER NOT NULL DEFAULT -32768,
    created_at      INTEGER NOT NULL,
    -- When it was published or last failed; NULL while it is claimed and once it is processed.
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
    deliver_to      TEXT,                               -- JSON array of the only consumers that are asked (replay); NULL is all
    last_error      TEXT    CHECK (length(last_error) <= 1023),
    payload         TEXT    NOT NULL,                   -- JSON, parsed by the API before it is written
    metadata        TEXT                                -- JSON
) STRICT;

-- Claiming reads these two and nothing else: history costs it nothing. Ties in available_at come out in order of seq.
CREATE INDEX outbox_event_due ON outbox_event (available_at) WHERE status = 'pending';
CREATE INDEX outbox_event_claimed ON outbox_event (available_at) WHERE status = 'processing';
-- What a person has to look at. Every status that the others leave is here, so that a row of one that nobody knows is found.
CREATE INDEX outbox_event_dead ON outbox_event (status) WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed';
-- What an event has caused.
CREATE INDEX outbox_event_cause ON outbox_event (causation_id) WHERE causation_id IS NOT NULL;

-- One row per event and consumer that has come to an outcome. The key says which: the event's `seq`, and in the low 20 bits
-- the consumer's number. So the rows of an event stand together, no two are for the same consumer, and there is no second
-- index to write.
CREATE TABLE inbox_event (
    id              INTEGER PRIMARY KEY,
    event           INTEGER GENERATED ALWAYS AS (id >> 20) VIRTUAL,                 -- outbox_event.seq
    consumer_name   TEXT    NOT NULL CHECK (length(consumer_name) BETWEEN 1 AND 255),
    status          TEXT    NOT NULL DEFAULT 'received'
                    CHECK (status = 'received' OR status = 'processing' OR status = 'processed' OR status = 'failed' OR status = 'skipped'),
    attempt_count   INTEGER NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),          -- failed attempts
    gave_up         INTEGER NOT NULL DEFAULT 0 CHECK (gave_up = 0 OR gave_up = 1),  -- failed for good: this consumer is not asked again
    last_error      TEXT    CHECK (length(last_error) <= 1023),
    processed_at    INTEGER,
    -- Both NULL in a row that was made when its consumer was done, as most are.
    received_at     INTEGER,
    changed_at      INTEGER,
    created_at      INTEGER GENERATED ALWAYS AS (coalesce(received_at, processed_at)) VIRTUAL,
    updated_at      INTEGER GENERATED ALWAYS AS (coalesce(changed_at, processed_at)) VIRTUAL
) STRICT;

-- A consumer's open work, without reading its history.
CREATE INDEX inbox_event_open ON inbox_event (consumer_name) WHERE status = 'received' OR status = 'processing' OR status = 'failed';

-- What went wrong with an event, and what people decided about it, for as long as the event is there: the last 100 of each event.
CREATE TABLE postbox_history (
    event           INTEGER NOT NULL,                   -- outbox_event.seq
    number          INTEGER NOT NULL,                   -- 1, 2, 3, ... of each event
    at              INTEGER NOT NULL,
    -- failed: a consumer's attempt. lost: an attempt that nobody ended. The others are decisions: of a dead letter, or of an event to be replayed.
    kind            TEXT    NOT NULL CHECK (kind = 'failed' OR kind = 'lost' OR kind = 'retried' OR kind = 'discarded' OR kind = 'replayed'),
    consumer_name   TEXT    CHECK (length(consumer_name) BETWEEN 1 AND 255),    -- NULL: all that had not finished
    duration        INTEGER CHECK (duration >= 0),      -- of the attempt, in microseconds; NULL where nobody knows
    detail          TEXT    CHECK (length(detail) <= 1023),                     -- the error, or the reason
    PRIMARY KEY (event, number)
) STRICT, WITHOUT ROWID;

-- Whoever deletes an event, on whatever connection: its inbox rows and its history go with it. A row of another program's whose `seq` no box could
-- have given has none, and shifted by 20 bits its number would be some other event's.
CREATE TRIGGER outbox_event_deleted AFTER DELETE ON outbox_event BEGIN
    DELETE FROM inbox_event
    WHERE OLD.seq BETWEEN 1 AND 8796093022207 AND id BETWEEN OLD.seq << 20 AND (OLD.seq << 20) + 1048575;
    DELETE FROM postbox_history WHERE event = OLD.seq;
    UPDATE postbox_counter
    SET deleted = deleted + (OLD.seq BETWEEN 1 AND 8796093022207),
        last_deleted = max(last_deleted, iif(OLD.seq <= 8796093022207, OLD.seq, 0)),
        processed = processed - (OLD.status = 'processed');
END;

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

-- Events that recur. A tick is published and `next_at` moved on in one transaction, so that each is published once, whichever process does
-- it. Ticks are times of the wall clock, not of the box's own, which may be ahead of it.
CREATE TABLE postbox_schedule (
    seq             INTEGER PRIMARY KEY,
    name            TEXT    NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    rule            TEXT    NOT NULL,                   -- JSON: a cron expression and its time zone, or an interval
    misfire         TEXT    NOT NULL,                   -- JSON: what becomes of ticks that passed while nobody was there
    counted_from    INTEGER,                            -- what the ticks of an interval are counted from, where its rule has no beginning
    next_at         INTEGER,                            -- the first tick that nobody has dealt with; NULL: none is to come
    last_at         INTEGER,                            -- the last tick that was published
    latest_at       INTEGER,                            -- the latest ever; after `last_at` where a clock was wrong that was ahead
    paused_at       INTEGER,                            -- NULL: it runs
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    last_error      TEXT    CHECK (length(last_error) <= 1023),     -- why it does not tick; NULL once it does
    event           TEXT    NOT NULL                    -- JSON: what each tick publishes
) STRICT;

CREATE INDEX postbox_schedule_next ON postbox_schedule (next_at) WHERE paused_at IS NULL AND next_at IS NOT NULL;

-- Where each conversation of a saga stands. Its handlers write it in the transaction in which they mark their event.
CREATE TABLE postbox_saga (
    seq             INTEGER PRIMARY KEY,
    name            TEXT    NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    correlation_id  TEXT    NOT NULL CHECK (length(correlation_id) BETWEEN 1 AND 255),
    status          TEXT    NOT NULL CHECK (status = 'running' OR status = 'completed' OR status = 'compensated'),
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    last_event      TEXT    NOT NULL CHECK (length(last_event) BETWEEN 1 AND 255),  -- the name of the event that changed it last
    reason          TEXT    CHECK (length(reason) <= 1023),                         -- why it was compensated, or ended by hand
    timeouts        TEXT,                               -- JSON: by name, the future events that tell it that something has not come
    undo            TEXT,                               -- JSON: events that undo what was done, in the order in which it was done
    state           TEXT    NOT NULL,                   -- JSON: the application's
    UNIQUE (name, correlation_id)
) STRICT;

-- Those that have not ended, the one first that has not moved for longest.
CREATE INDEX postbox_saga_running ON postbox_saga (updated_at) WHERE status = 'running';
-- Those that have, for retention.
CREATE INDEX postbox_saga_ended ON postbox_saga (updated_at) WHERE status <> 'running';

-- For people with a `sqlite3` shell: ids as UUIDs, times as ISO 8601.
CREATE VIEW outbox_event_readable AS
SELECT seq,
       lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-'
             || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21)) AS id,
       event_name, source_module, aggregate_type, aggregate_id, status, attempt_count, last_error,
       CASE available_at WHEN 253402300799999999 THEN 'held until somebody subscribes'
                         WHEN 253402300799999998 THEN 'paused'
                         WHEN 253402300799999997 THEN 'waits for its turn'
                         WHEN 253402300799999996 THEN 'waits for room'
                         WHEN 253402300799999995 THEN 'waits for a newer release'
                         ELSE strftime('%Y-%m-%dT%H:%M:%fZ', available_at / 1000000.0, 'unixepoch') END AS available_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', processed_at / 1000000.0, 'unixepoch') AS processed_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000000.0, 'unixepoch') AS updated_at,
       correlation_id,
       iif(causation_id IS NULL, NULL,
           lower(substr(hex(causation_id), 1, 8) || '-' || substr(hex(causation_id), 9, 4) || '-' || substr(hex(causation_id), 13, 4)
                 || '-' || substr(hex(causation_id), 17, 4) || '-' || substr(hex(causation_id), 21))) AS causation_id,
       traceparent, payload_version, deliver_to, payload, metadata
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

CREATE VIEW postbox_schedule_readable AS
SELECT name, rule, misfire,
       strftime('%Y-%m-%dT%H:%M:%fZ', next_at / 1000000.0, 'unixepoch') AS next_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', last_at / 1000000.0, 'unixepoch') AS last_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', paused_at / 1000000.0, 'unixepoch') AS paused_at,
       last_error,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000000.0, 'unixepoch') AS updated_at,
       event
FROM postbox_schedule;

CREATE VIEW postbox_saga_readable AS
SELECT name, correlation_id, status, last_event, reason,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000000.0, 'unixepoch') AS updated_at,
       timeouts, undo, state
FROM postbox_saga;

INSERT INTO postbox_schema (singleton, version) VALUES (1, 6);
INSERT INTO postbox_counter (singleton) VALUES (1);

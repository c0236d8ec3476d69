-- From version 5 to 6: schedules and sagas, and events that wait for a release that can read them.
-- What stands here is as version 6 was, and never changes again.

-- Events that recur. A tick is published and `next_at` moved on in one transaction, so that each is published once, whichever process does
-- it. Ticks are times of the wall clock, not of the box's own, which may be ahead of it.
CREATE TABLE main.postbox_schedule (
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

CREATE INDEX main.postbox_schedule_next ON postbox_schedule (next_at) WHERE paused_at IS NULL AND next_at IS NOT NULL;

-- Where each conversation of a saga stands. Its handlers write it in the transaction in which they mark their event.
CREATE TABLE main.postbox_saga (
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
CREATE INDEX main.postbox_saga_running ON postbox_saga (updated_at) WHERE status = 'running';
-- Those that have, for retention.
CREATE INDEX main.postbox_saga_ended ON postbox_saga (updated_at) WHERE status <> 'running';

DROP VIEW main.outbox_event_readable;
CREATE VIEW main.outbox_event_readable AS
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

CREATE VIEW main.postbox_schedule_readable AS
SELECT name, rule, misfire,
       strftime('%Y-%m-%dT%H:%M:%fZ', next_at / 1000000.0, 'unixepoch') AS next_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', last_at / 1000000.0, 'unixepoch') AS last_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', paused_at / 1000000.0, 'unixepoch') AS paused_at,
       last_error,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000000.0, 'unixepoch') AS updated_at,
       event
FROM postbox_schedule;

CREATE VIEW main.postbox_saga_readable AS
SELECT name, correlation_id, status, last_event, reason,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000000.0, 'unixepoch') AS updated_at,
       timeouts, undo, state
FROM postbox_saga;

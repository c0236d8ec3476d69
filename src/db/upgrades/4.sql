-- From version 3 to 4: what went wrong with events is kept, consumers and event names can be paused, and what an event has caused is
-- found.
-- What stands here is as version 4 was, and never changes again.

-- What is paused: the work of a consumer, or all events of a name. Events that wait for it are due in the year 9999, a microsecond
-- before those that are held.
CREATE TABLE main.postbox_pause (
    kind            TEXT    NOT NULL CHECK (kind = 'consumer' OR kind = 'event_name'),
    name            TEXT    NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    reason          TEXT    CHECK (length(reason) <= 1023),
    since           INTEGER NOT NULL,
    until           INTEGER,                            -- NULL: until somebody resumes it
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- What went wrong with an event, and what people decided about it, for as long as the event is there: the last 100 of each event.
CREATE TABLE main.postbox_history (
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

CREATE INDEX main.outbox_event_cause ON outbox_event (causation_id) WHERE causation_id IS NOT NULL;

DROP TRIGGER main.outbox_event_deleted;
CREATE TRIGGER main.outbox_event_deleted AFTER DELETE ON outbox_event BEGIN
    DELETE FROM inbox_event
    WHERE OLD.seq BETWEEN 1 AND 8796093022207 AND id BETWEEN OLD.seq << 20 AND (OLD.seq << 20) + 1048575;
    DELETE FROM postbox_history WHERE event = OLD.seq;
    UPDATE postbox_counter
    SET deleted = deleted + (OLD.seq BETWEEN 1 AND 8796093022207),
        last_deleted = max(last_deleted, iif(OLD.seq <= 8796093022207, OLD.seq, 0)),
        processed = processed - (OLD.status = 'processed');
END;

DROP VIEW main.outbox_event_readable;
CREATE VIEW main.outbox_event_readable AS
SELECT seq,
       lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-'
             || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21)) AS id,
       event_name, source_module, aggregate_type, aggregate_id, status, attempt_count, last_error,
       CASE available_at WHEN 253402300799999999 THEN 'held until somebody subscribes'
                         WHEN 253402300799999998 THEN 'paused'
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

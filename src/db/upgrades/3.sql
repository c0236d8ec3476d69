-- From version 2 to 3: the index of what a person has to look at holds every status that is neither live nor processed, and
-- deleting a row whose number no box could have given does no harm to the inbox rows and the numbers of others; an event without a
-- cause shows none.
-- What stands here is as version 3 was, and never changes again.

DROP INDEX main.outbox_event_dead;
CREATE INDEX main.outbox_event_dead ON outbox_event (status) WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed';

DROP TRIGGER main.outbox_event_deleted;
CREATE TRIGGER main.outbox_event_deleted AFTER DELETE ON outbox_event BEGIN
    DELETE FROM inbox_event
    WHERE OLD.seq BETWEEN 1 AND 8796093022207 AND id BETWEEN OLD.seq << 20 AND (OLD.seq << 20) + 1048575;
    UPDATE postbox_counter
    SET deleted = deleted + (OLD.seq BETWEEN 1 AND 8796093022207),
        last_deleted = max(last_deleted, iif(OLD.seq <= 8796093022207, OLD.seq, 0)),
        processed = processed - (OLD.status = 'processed');
END;

-- Deleting such a row has made the numbers useless: the next one is looked up anew.
UPDATE main.postbox_counter
SET last_deleted = coalesce((SELECT max(seq) FROM main.outbox_event WHERE seq <= 8796093022207), 0),
    deleted = coalesce((SELECT max(seq) FROM main.outbox_event WHERE seq <= 8796093022207), 0)
              - (SELECT count(*) FROM main.outbox_event WHERE seq BETWEEN 1 AND 8796093022207)
WHERE last_deleted > 8796093022207;

DROP VIEW main.outbox_event_readable;
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
       iif(causation_id IS NULL, NULL,
           lower(substr(hex(causation_id), 1, 8) || '-' || substr(hex(causation_id), 9, 4) || '-' || substr(hex(causation_id), 13, 4)
                 || '-' || substr(hex(causation_id), 17, 4) || '-' || substr(hex(causation_id), 21))) AS causation_id,
       traceparent, payload_version, deliver_to, payload, metadata
FROM outbox_event;

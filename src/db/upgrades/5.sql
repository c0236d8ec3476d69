-- From version 4 to 5: events can wait for their turn, and the view says so.
-- What stands here is as version 5 was, and never changes again.

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

-- Unfinished events by aggregate, in their order. It is made when somebody first asks for order: the others do not pay for it.
CREATE INDEX IF NOT EXISTS main.outbox_event_order ON outbox_event (source_module, aggregate_type, aggregate_id) WHERE processed_at IS NULL;

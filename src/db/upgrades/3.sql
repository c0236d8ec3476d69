-- From version 2 to 3: the index of what a person has to look at holds every status that is neither live nor processed.
-- What stands here is as version 3 was, and never changes again.

DROP INDEX main.outbox_event_dead;
CREATE INDEX main.outbox_event_dead ON outbox_event (status) WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed';

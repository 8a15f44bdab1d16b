-- Keys are forgotten by a time that the database believes, which no wrong clock moves by much.

-- First: an engine that still runs here goes by its clock alone, and is stopped by its next commit.
LOCK TABLE engine_epoch IN EXCLUSIVE MODE;
UPDATE engine_epoch SET epoch = epoch + 1 WHERE epoch > 0;

CREATE TABLE believed_time (
    one boolean NOT NULL DEFAULT true,
    at_ms bigint,
    CONSTRAINT believed_time_pkey PRIMARY KEY (one),
    CONSTRAINT believed_time_single_row CHECK (one)
);

-- What was committed last is the best that is known; where there is nothing yet, any clock is.
INSERT INTO believed_time (at_ms)
SELECT (SELECT b.recorded_ms FROM batches b WHERE b.lane = 0 ORDER BY b.number DESC LIMIT 1);

-- When keys were answered before 0005 is not known, so all that are there count from now on. A
-- column that is new takes its default without a rewrite of the table.
ALTER TABLE idempotency DROP COLUMN answered_ms;
ALTER TABLE idempotency
ADD COLUMN answered_ms bigint DEFAULT (extract(EPOCH FROM now()) * 1000)::bigint;
ALTER TABLE idempotency ALTER COLUMN answered_ms DROP DEFAULT;

-- Keys are forgotten by a time that the database believes, which no wrong clock moves by much.

-- First: an engine that still runs here goes by its clock alone, and is stopped by its next commit.
LOCK TABLE engine_epoch IN EXCLUSIVE MODE;
UPDATE engine_epoch SET epoch = epoch + 1 WHERE epoch > 0;

CREATE TABLE believed_time (
    one boolean NOT NULL DEFAULT true,
    at_ms bigint,
    keys_from_ms bigint NOT NULL,
    CONSTRAINT believed_time_pkey PRIMARY KEY (one),
    CONSTRAINT believed_time_single_row CHECK (one)
);

-- What was committed last is the best that is known; where there is nothing yet, any clock is. When
-- keys were answered before 0005 is not known, so none goes before all that are there are old.
INSERT INTO believed_time (at_ms, keys_from_ms)
SELECT b.recorded_ms, coalesce(b.recorded_ms, 0)
FROM (SELECT) AS always
LEFT JOIN LATERAL (
    SELECT recorded_ms FROM batches WHERE lane = 0 ORDER BY number DESC LIMIT 1
) AS b ON true;

-- Idempotency keys are forgotten by age now, and an index finds the oldest ones wherever they lie.
-- Nothing is committed while it is built: a few seconds for ten million keys.

-- First: an engine that still runs here is stopped by its next commit, which waits for this
-- transaction.
LOCK TABLE engine_epoch IN EXCLUSIVE MODE;
UPDATE engine_epoch SET epoch = epoch + 1 WHERE epoch > 0;

-- In this order keys can be read until the index stands.
CREATE INDEX idempotency_age ON idempotency (created_ms);
DROP INDEX idempotency_created;

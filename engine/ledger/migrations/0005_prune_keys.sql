-- Idempotency keys are forgotten by age now. Nothing is committed while the index for that is
-- built: a few seconds for ten million keys in memory, and as long as it takes to read them from
-- disk.

-- First: an engine that still runs here is stopped by its next commit, which waits for this
-- transaction, and so commits nothing in the old way any more.
LOCK TABLE engine_epoch IN EXCLUSIVE MODE;
UPDATE engine_epoch SET epoch = epoch + 1 WHERE epoch > 0;

-- In this order keys can be read until the index stands. Then readers (pg_dump, say) are waited
-- for, ten seconds.
CREATE INDEX idempotency_age ON idempotency (created_ms);
DROP INDEX idempotency_created;

-- A key is not forgotten soon after a late answer.
ALTER TABLE idempotency ADD COLUMN answered_ms bigint;

CREATE OR REPLACE FUNCTION append_batch(
    in_lane smallint,
    in_number bigint,
    in_key text,
    in_epoch bigint,
    in_recorded_ms bigint,
    in_first_transfer bigint,
    in_last_transfer bigint,
    in_transfers_count integer,
    in_prev_hash bytea,
    in_hash bytea,
    in_accounts account_input [],
    in_transfers transfer_inputs,
    in_second_phases boolean,
    in_payments payment_input [],
    in_payment_changes payment_change [],
    in_claims claim_input [],
    in_answers answer_input [],
    in_released key_input [],
    in_events event_input [],
    in_refunds refund_input [],
    in_timeline timeline_inputs,
    in_timers_cleared timer_inputs,
    in_timers_set timer_inputs,
    in_inbox inbox_input [],
    in_inbox_reopened inbox_reopened_input [],
    in_inbox_done inbox_done_input [],
    in_dead_letters dead_letter_input [],
    in_dead_letters_done text []
) RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    found_epoch bigint;
    touched bigint;
BEGIN
    SELECT e.epoch INTO found_epoch FROM engine_epoch e FOR SHARE;
    IF found_epoch IS DISTINCT FROM in_epoch THEN
        RAISE EXCEPTION 'epoch % is over, this is epoch %', in_epoch, found_epoch
            USING ERRCODE = 'PE001';
    END IF;

    -- First of all, so that a retry meets the row of its first try (and waits for it where that
    -- is still under way) before it changes anything.
    INSERT INTO batches (
        lane, number, key, epoch, recorded_ms, transfers, first_transfer, last_transfer,
        prev_hash, hash
    ) VALUES (
        in_lane, in_number, in_key, in_epoch, in_recorded_ms,
        in_transfers_count, in_first_transfer, in_last_transfer,
        in_prev_hash, in_hash
    ) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        IF EXISTS (
            SELECT FROM batches b
            WHERE b.lane = in_lane AND b.number = in_number AND b.key = in_key
        ) THEN
            RETURN false;
        END IF;
        RAISE EXCEPTION 'batch % or its key is taken by another batch', in_number
            USING ERRCODE = 'PE004';
    END IF;
    IF in_number > 1 AND NOT EXISTS (
        SELECT FROM batches b
        WHERE b.lane = in_lane AND b.number = in_number - 1 AND b.hash = in_prev_hash
    ) THEN
        RAISE EXCEPTION 'batch % does not continue the chain', in_number
            USING ERRCODE = 'PE004';
    END IF;

    IF in_claims IS NOT NULL THEN
        INSERT INTO idempotency (
            merchant_id, livemode, key, fingerprint, created_ms, payment_id, op, status, body,
            code, location, batch
        )
        SELECT c.*, in_number FROM unnest(in_claims) c
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS touched = ROW_COUNT;
        IF touched <> cardinality(in_claims) THEN
            RAISE EXCEPTION 'idempotency keys are taken' USING ERRCODE = 'PE002', DETAIL = (
                SELECT coalesce(json_agg(json_build_array(c.merchant_id, c.livemode, c.key)), '[]')
                FROM unnest(in_claims) c
                JOIN idempotency i ON key_digest(i.merchant_id, i.livemode, i.key)
                    = key_digest(c.merchant_id, c.livemode, c.key)
                WHERE i.batch <> in_number
            );
        END IF;
    END IF;

    IF in_accounts IS NOT NULL THEN
        INSERT INTO accounts (id, book, kind, owner, currency, livemode, batch, created_ms)
        SELECT a.*, in_number, in_recorded_ms FROM unnest(in_accounts) a;
    END IF;

    IF in_transfers IS NOT NULL THEN
        INSERT INTO transfers (
            id, debit_account, credit_account, amount, kind, phase, resolves, link, payment_id,
            op, event_ms, batch
        )
        SELECT t.*, in_number FROM unnest(in_transfers) t;
        -- What check_second_phases does, from the array at hand.
        IF in_second_phases AND EXISTS (
            SELECT FROM unnest(in_transfers) t LEFT JOIN transfers p ON p.id = t.resolves
            WHERE t.resolves > 0 AND (
                p.phase = 'pending' AND p.debit_account = t.debit_account
                AND p.credit_account = t.credit_account AND p.amount >= t.amount
            ) IS NOT TRUE
        ) THEN
            RAISE EXCEPTION 'a second phase does not fit what it resolves'
                USING ERRCODE = 'PE006';
        END IF;
    END IF;

    IF in_payments IS NOT NULL THEN
        INSERT INTO payments (
            id, merchant_id, livemode, open, slot, version, created_ms, amount, authorized,
            capturing, captured, releasing, released, refunding, refunded, excess_captured,
            excess_refunded, status, currency, customer, subscription, reference, doc,
            reference_held, has_work
        )
        SELECT p.* FROM unnest(in_payments) p;
    END IF;

    IF in_payment_changes IS NOT NULL THEN
        UPDATE payments p SET
            version = c.version, open = c.open, authorized = c.authorized,
            capturing = c.capturing, captured = c.captured, releasing = c.releasing,
            released = c.released, refunding = c.refunding, refunded = c.refunded,
            excess_captured = c.excess_captured, excess_refunded = c.excess_refunded,
            status = c.status, doc = c.doc, reference_held = c.reference_held,
            has_work = c.has_work
        FROM unnest(in_payment_changes) c
        WHERE p.id = c.id AND p.version = c.expected;
        GET DIAGNOSTICS touched = ROW_COUNT;
        IF touched <> cardinality(in_payment_changes) THEN
            RAISE EXCEPTION 'a payment does not have the expected version'
                USING ERRCODE = 'PE003';
        END IF;
    END IF;

    IF in_answers IS NOT NULL THEN
        -- A final answer is never replaced, and one whose key has been forgotten has nobody left
        -- to replay it to.
        UPDATE idempotency i SET
            status = a.status, body = a.body, code = a.code, location = a.location,
            answered_ms = in_recorded_ms
        FROM unnest(in_answers) a
        WHERE key_digest(i.merchant_id, i.livemode, i.key)
            = key_digest(a.merchant_id, a.livemode, a.key) AND i.status IS NULL;
    END IF;

    IF in_released IS NOT NULL THEN
        DELETE FROM idempotency i USING unnest(in_released) r
        WHERE key_digest(i.merchant_id, i.livemode, i.key)
            = key_digest(r.merchant_id, r.livemode, r.key);
    END IF;

    IF in_events IS NOT NULL THEN
        INSERT INTO events (
            merchant_id, livemode, sequence, created_ms, id, type, object_id, body
        )
        SELECT e.* FROM unnest(in_events) e;
    END IF;

    IF in_refunds IS NOT NULL THEN
        INSERT INTO refunds (id, payment_id, merchant_id, livemode, created_ms, status, body)
        SELECT r.* FROM unnest(in_refunds) r
        ON CONFLICT (id) DO UPDATE SET status = excluded.status, body = excluded.body;
    END IF;

    IF in_timeline IS NOT NULL THEN
        INSERT INTO timeline (payment_id, version, steps, batch, recorded_ms)
        SELECT t.*, in_number, in_recorded_ms FROM unnest(in_timeline) t;
    END IF;

    IF in_timers_cleared IS NOT NULL THEN
        DELETE FROM timers t USING unnest(in_timers_cleared) c
        WHERE t.kind = c.kind AND t.due_ms = c.due_ms AND t.payment_id = c.payment_id;
    END IF;

    IF in_timers_set IS NOT NULL THEN
        INSERT INTO timers (kind, due_ms, payment_id)
        SELECT s.* FROM unnest(in_timers_set) s
        ON CONFLICT DO NOTHING;
    END IF;

    IF in_inbox IS NOT NULL THEN
        -- The provider's repetition of a webhook is not an error.
        INSERT INTO webhook_inbox (gateway, event_id, received_ms, headers, raw)
        SELECT w.* FROM unnest(in_inbox) w
        ON CONFLICT DO NOTHING;
    END IF;

    IF in_inbox_reopened IS NOT NULL THEN
        -- A letter that has been closed reopens nothing: what became of its webhook stands.
        UPDATE webhook_inbox w SET outcome = NULL, done_ms = NULL
        FROM unnest(in_inbox_reopened) r
        JOIN dead_letters d ON d.id = r.dead_letter AND d.done_ms IS NULL
        WHERE w.gateway = r.gateway AND w.event_id = r.event_id;
    END IF;

    IF in_inbox_done IS NOT NULL THEN
        UPDATE webhook_inbox w SET outcome = d.outcome, done_ms = in_recorded_ms
        FROM unnest(in_inbox_done) d
        WHERE w.gateway = d.gateway AND w.event_id = d.event_id AND w.outcome IS NULL;
    END IF;

    IF in_dead_letters IS NOT NULL THEN
        INSERT INTO dead_letters (id, kind, subject, reason, created_ms, body)
        SELECT d.* FROM unnest(in_dead_letters) d;
    END IF;

    IF in_dead_letters_done IS NOT NULL THEN
        UPDATE dead_letters d SET done_ms = in_recorded_ms
        WHERE d.id = ANY (in_dead_letters_done) AND d.done_ms IS NULL;
    END IF;

    RETURN true;
END
$$;

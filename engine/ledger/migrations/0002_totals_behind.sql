-- The accounts' totals follow the journal a moment behind, instead of with every commit: a commit
-- that touched a hundred accounts spent most of its time on them. What is read stays exact.

-- First: an engine that still runs here is stopped by its next commit, which waits for this
-- transaction. So nothing is written in the old way after what follows has looked.
LOCK TABLE engine_epoch IN EXCLUSIVE MODE;
UPDATE engine_epoch SET epoch = epoch + 1 WHERE epoch > 0;

-- How far the totals have been projected: each row covers the batches after `after_batch` up to
-- `batch`, and the rows cover the journal from its beginning without a gap. `recorded_ms` is that
-- of its last batch.
CREATE TABLE projections (
    batch bigint NOT NULL,
    after_batch bigint NOT NULL,
    recorded_ms bigint NOT NULL,
    CONSTRAINT projections_pkey PRIMARY KEY (batch),
    CONSTRAINT projections_follow UNIQUE (after_batch),
    CONSTRAINT projections_forward CHECK (batch > after_batch)
);

CREATE TRIGGER projections_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON projections
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What the batches after one up to another add to each account: the fold of their transfers. Ids
-- of one batch may lie among those of the next, so the ids only say where to look.
CREATE FUNCTION moved(in_after_batch bigint, in_batch bigint) RETURNS TABLE (
    account_id bigint,
    debits_pending bigint,
    debits_posted bigint,
    credits_pending bigint,
    credits_posted bigint,
    transfers bigint,
    first_transfer bigint,
    last_transfer bigint
)
LANGUAGE sql
STABLE
AS $$
    WITH bounds AS (
        SELECT min(b.first_transfer) AS low, max(b.last_transfer) AS high
        FROM batches b
        WHERE b.lane = 0 AND b.number > in_after_batch AND b.number <= in_batch
            AND b.transfers > 0
    ),

    pairs AS (
        SELECT
            t.debit_account, t.credit_account, count(*) AS transfers,
            min(t.id) AS low, max(t.id) AS high,
            sum(
                CASE t.phase WHEN 'posted' THEN 0 WHEN 'pending' THEN t.amount ELSE -t.amount END
            )::bigint AS pending,
            sum(
                CASE WHEN t.phase IN ('posted', 'post_pending') THEN t.amount ELSE 0 END
            )::bigint AS posted
        FROM bounds
        JOIN transfers t ON t.id BETWEEN bounds.low AND bounds.high
        WHERE t.batch > in_after_batch AND t.batch <= in_batch
        GROUP BY t.debit_account, t.credit_account
    ),

    sides AS (
        SELECT
            p.debit_account AS account_id, p.pending AS dp, p.posted AS dd, 0 AS cp, 0 AS cc,
            p.transfers, p.low, p.high
        FROM pairs p
        UNION ALL
        SELECT p.credit_account, 0, 0, p.pending, p.posted, p.transfers, p.low, p.high
        FROM pairs p
    )

    SELECT
        s.account_id, sum(s.dp)::bigint, sum(s.dd)::bigint, sum(s.cp)::bigint, sum(s.cc)::bigint,
        sum(s.transfers)::bigint, min(s.low), max(s.high)
    FROM sides s
    GROUP BY s.account_id
$$;

-- Where the transfers lie that the totals do not have yet: between two ids, in batches after one.
-- Without any, all is null.
CREATE VIEW unprojected AS
SELECT min(b.first_transfer) AS low, max(b.last_transfer) AS high, min(b.number) - 1 AS after_batch
FROM batches b
WHERE b.lane = 0 AND b.transfers > 0
    AND b.number > (SELECT coalesce(max(p.batch), 0) FROM projections p);

-- The accounts with their totals as of the last batch there is.
CREATE VIEW account_totals AS
SELECT
    a.id, a.book, a.kind, a.owner, a.currency, a.livemode, a.batch, a.created_ms,
    a.debits_pending + coalesce(m.debits_pending, 0) AS debits_pending,
    a.debits_posted + coalesce(m.debits_posted, 0) AS debits_posted,
    a.credits_pending + coalesce(m.credits_pending, 0) AS credits_pending,
    a.credits_posted + coalesce(m.credits_posted, 0) AS credits_posted,
    a.version + coalesce(m.transfers, 0) AS version
FROM accounts a
LEFT JOIN moved(
    (SELECT coalesce(max(p.batch), 0) FROM projections p), 9223372036854775807
) m ON m.account_id = a.id;

-- Brings the accounts' totals and their history up to the last batch, or to one that leaves no
-- more than about `in_transfers`, and no more than `in_batches`, to fold at once. Tells how many
-- of each it folded: where it is fewer of both, there is nothing more to do. Whoever runs it, and
-- however often: each batch is folded once. Its own error, PE007: transfers are missing, or name
-- accounts that are not there.
CREATE FUNCTION project_totals(
    in_transfers bigint, in_batches bigint, OUT transfers bigint, OUT batches bigint
)
LANGUAGE plpgsql
AS $$
DECLARE
    done bigint;
    upto bigint;
    upto_ms bigint;
    counted bigint;
BEGIN
    -- Against itself only. The number is arbitrary.
    PERFORM pg_advisory_xact_lock(7305808869231650118);
    SELECT coalesce(max(p.batch), 0) INTO done FROM projections p;
    SELECT w.number, w.folded, w.recorded_ms INTO upto, transfers, upto_ms
    FROM (
        SELECT
            b.number, b.transfers, b.recorded_ms,
            sum(b.transfers) OVER (ORDER BY b.number)::bigint AS folded
        FROM batches b
        WHERE b.lane = 0 AND b.number > done AND b.number <= done + in_batches
    ) w
    WHERE w.folded - w.transfers < in_transfers
    ORDER BY w.number DESC
    LIMIT 1;
    IF upto IS NULL THEN
        transfers := 0;
        batches := 0;
        RETURN;
    END IF;
    batches := upto - done;
    WITH updated AS (
        UPDATE accounts a SET
            debits_pending = a.debits_pending + m.debits_pending,
            debits_posted = a.debits_posted + m.debits_posted,
            credits_pending = a.credits_pending + m.credits_pending,
            credits_posted = a.credits_posted + m.credits_posted,
            version = a.version + m.transfers
        FROM moved(done, upto) m
        WHERE a.id = m.account_id
        RETURNING a.id, a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted,
            a.version, m.transfers, m.first_transfer, m.last_transfer
    ),

    kept AS (
        INSERT INTO account_history (
            account_id, batch, recorded_ms, debits_pending, debits_posted, credits_pending,
            credits_posted, version, first_transfer, last_transfer
        )
        SELECT
            u.id, upto, upto_ms, u.debits_pending, u.debits_posted, u.credits_pending,
            u.credits_posted, u.version, u.first_transfer, u.last_transfer
        FROM updated u
        ORDER BY u.id
    )

    SELECT coalesce(sum(u.transfers), 0) INTO counted FROM updated u;
    IF counted <> 2 * transfers THEN
        RAISE EXCEPTION 'batches % to % have transfers that are missing, or of no account',
            done + 1, upto USING ERRCODE = 'PE007';
    END IF;
    INSERT INTO projections (batch, after_batch, recorded_ms) VALUES (upto, done, upto_ms);
END
$$;


-- What there is was projected with every batch.
INSERT INTO projections (batch, after_batch, recorded_ms)
SELECT number, number - 1, recorded_ms FROM batches WHERE lane = 0;

-- An account's version counts its transfers from now on, and did count its batches.
ALTER TABLE account_history DISABLE TRIGGER account_history_append_only;

UPDATE account_history h SET version = counted.version
FROM (
    SELECT
        moves.account_id, moves.batch,
        sum(moves.transfers) OVER (PARTITION BY moves.account_id ORDER BY moves.batch) AS version
    FROM (
        SELECT sides.account_id, sides.batch, count(*) AS transfers
        FROM (
            SELECT t.debit_account AS account_id, t.batch FROM transfers t
            UNION ALL
            SELECT t.credit_account, t.batch FROM transfers t
        ) sides
        GROUP BY sides.account_id, sides.batch
    ) moves
) counted
WHERE h.account_id = counted.account_id AND h.batch = counted.batch;

ALTER TABLE account_history ENABLE TRIGGER account_history_append_only;

UPDATE accounts a SET version = last.version
FROM (SELECT h.account_id, max(h.version) AS version FROM account_history h GROUP BY h.account_id)
    last
WHERE a.id = last.account_id;

CREATE OR REPLACE VIEW trial_balance AS
SELECT
    a.book, a.currency, a.livemode,
    sum(a.debits_posted) - sum(a.credits_posted) AS posted,
    sum(a.debits_pending) - sum(a.credits_pending) AS pending
FROM account_totals a
GROUP BY a.book, a.currency, a.livemode;

-- The group commit, without the totals.
DROP FUNCTION append_batch (
    smallint, bigint, text, bigint, bigint, bigint, bigint, integer, bytea, bytea,
    account_input [], balance_inputs, transfer_inputs, boolean, payment_input [],
    payment_change [], claim_input [], answer_input [], key_input [], event_input [],
    refund_input [], timeline_inputs, timer_inputs, timer_inputs, inbox_input [],
    inbox_reopened_input [], inbox_done_input [], dead_letter_input [], text []
);
DROP DOMAIN balance_inputs;
DROP TYPE balance_input;

CREATE FUNCTION append_batch(
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
                JOIN idempotency i USING (merchant_id, livemode, key)
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
            reference_held
        )
        SELECT p.* FROM unnest(in_payments) p;
    END IF;

    IF in_payment_changes IS NOT NULL THEN
        UPDATE payments p SET
            version = c.version, open = c.open, authorized = c.authorized,
            capturing = c.capturing, captured = c.captured, releasing = c.releasing,
            released = c.released, refunding = c.refunding, refunded = c.refunded,
            excess_captured = c.excess_captured, excess_refunded = c.excess_refunded,
            status = c.status, doc = c.doc, reference_held = c.reference_held
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
            status = a.status, body = a.body, code = a.code, location = a.location
        FROM unnest(in_answers) a
        WHERE i.merchant_id = a.merchant_id AND i.livemode = a.livemode AND i.key = a.key
            AND i.status IS NULL;
    END IF;

    IF in_released IS NOT NULL THEN
        DELETE FROM idempotency i USING unnest(in_released) r
        WHERE i.merchant_id = r.merchant_id AND i.livemode = r.livemode AND i.key = r.key;
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

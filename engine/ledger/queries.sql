-- The queries of the ledger, by name. What a group commit does is the function append_batch in
-- schema.sql; everything else that engine/ledger asks of Postgres is here.

-- name: append_batch
SELECT append_batch(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
    $21, $22, $23, $24, $25, $26, $27, $28
)

-- name: project_totals
SELECT transfers, batches FROM project_totals($1, $2)

-- name: believe_time
UPDATE believed_time SET at_ms = coalesce(at_ms + greatest(-$2::bigint, least($2, $1 - at_ms)), $1)
RETURNING at_ms

-- name: prune_keys
-- Forgets some of the keys that were claimed and answered before a time, the oldest first. One that
-- somebody else is at is left for the next time. The third argument says where to begin: what was
-- forgotten just now is met again in the index, for as long as an old snapshot lives.
WITH old AS (
    SELECT i.ctid
    FROM idempotency i
    WHERE
        i.created_ms < $1 AND i.created_ms >= $3
        AND i.status IS NOT NULL AND coalesce(i.answered_ms, i.created_ms) < $1
        AND $1 > (SELECT keys_from_ms FROM believed_time)
    ORDER BY i.created_ms
    LIMIT $2
    FOR UPDATE SKIP LOCKED
),

gone AS (
    DELETE FROM idempotency i USING old WHERE i.ctid = old.ctid
    RETURNING i.created_ms
)

SELECT count(*) AS pruned, max(gone.created_ms) AS reached FROM gone

-- name: snapshot
-- What follows in this transaction is of one moment, and of whole tables.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL enable_hashjoin = on

-- name: pending
-- What is pending on either side of an account, where there is any.
SELECT id, debits_pending, credits_pending
FROM account_totals
WHERE debits_pending <> 0 OR credits_pending <> 0

-- name: largest_total
SELECT coalesce(max(greatest(debits_pending, debits_posted, credits_pending, credits_posted)), 0)
FROM account_totals

-- name: keys_taken
-- Which of these idempotency keys are claimed.
SELECT i.merchant_id, i.livemode, i.key
FROM unnest($1::text [], $2::boolean [], $3::text []) AS wanted (merchant_id, livemode, key)
JOIN idempotency i ON key_digest(i.merchant_id, i.livemode, i.key)
    = key_digest(wanted.merchant_id, wanted.livemode, wanted.key)

-- name: check_second_phases
SELECT check_second_phases($1, $2)

-- name: types
-- The numbers of the input types, which differ between databases.
SELECT t.typname, t.oid, n.nspname
FROM unnest($1::text []) AS wanted (name)
JOIN pg_type t ON t.oid = to_regtype(wanted.name)
JOIN pg_namespace n ON n.oid = t.typnamespace

-- name: head
-- Where the journal ends. No row: it is empty.
SELECT number, key, hash FROM batches WHERE lane = $1 ORDER BY number DESC LIMIT 1

-- name: last_transfer
-- Transfer ids go on from here: each is larger than all before it.
SELECT coalesce(max(last_transfer), 0) AS id FROM batches WHERE lane = 0

-- name: hash_of
-- The hash of one batch.
SELECT hash FROM batches WHERE lane = $1 AND number = $2

-- name: accounts_above
-- The accounts that a process does not know yet; it is the only one that opens any.
SELECT id, book, kind, owner, currency, livemode FROM accounts WHERE id > $1 ORDER BY id

-- name: epoch
SELECT epoch FROM engine_epoch

-- name: next_epoch
-- Waits for a commit in flight, which holds a share lock on the row.
UPDATE engine_epoch SET epoch = epoch + 1, owner = $1, since_ms = $2 RETURNING epoch

-- name: try_lock
-- The number is arbitrary, and the same for every engine. The lock belongs to the connection and
-- to this database.
SELECT pg_try_advisory_lock(7305808869231650116)

-- name: durability
SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS commit

-- name: payments
SELECT doc FROM payments WHERE id = ANY ($1::text [])

-- name: open_payments
-- All of them, by COPY: no order is asked for, so that the table can be read as it lies.
SELECT has_work, id, doc FROM payments WHERE open AND slot >= $1 AND slot < $2

-- name: claim
SELECT fingerprint, created_ms, payment_id, op, status, body, code, location
FROM idempotency
WHERE key_digest(merchant_id, livemode, key) = key_digest($1, $2, $3)

-- name: list_payments
-- Ids sort by time, so the index gives them newest first and the filters drop what is not wanted.
SELECT doc
FROM payments
WHERE
    merchant_id = $1 AND livemode = $2
    AND ($3::text IS NULL OR status = $3)
    AND ($4::text IS NULL OR customer = $4)
    AND ($5::text IS NULL OR subscription = $5)
    AND ($6::bigint IS NULL OR created_ms >= $6)
    AND ($7::bigint IS NULL OR created_ms <= $7)
    AND id < coalesce($8, '~')
ORDER BY id DESC
LIMIT $9

-- name: list_payments_by_reference
-- By its own index: the payment that holds it, and the attempts before it that gave it up.
SELECT doc
FROM payments
WHERE
    merchant_id = $1 AND livemode = $2 AND reference = $10
    AND ($3::text IS NULL OR status = $3)
    AND ($4::text IS NULL OR customer = $4)
    AND ($5::text IS NULL OR subscription = $5)
    AND ($6::bigint IS NULL OR created_ms >= $6)
    AND ($7::bigint IS NULL OR created_ms <= $7)
    AND id < coalesce($8, '~')
ORDER BY id DESC
LIMIT $9

-- name: refund
SELECT body FROM refunds WHERE id = $3 AND merchant_id = $1 AND livemode = $2

-- name: list_refunds
SELECT id, body
FROM refunds
WHERE
    merchant_id = $1 AND livemode = $2
    AND ($3::text IS NULL OR status = $3)
    AND id < coalesce($4, '~')
ORDER BY id DESC
LIMIT $5

-- name: list_refunds_of_payment
SELECT id, body
FROM refunds
WHERE
    payment_id = $6 AND merchant_id = $1 AND livemode = $2
    AND ($3::text IS NULL OR status = $3)
    AND id < coalesce($4, '~')
ORDER BY id DESC
LIMIT $5

-- name: timeline
SELECT version, batch, recorded_ms, steps FROM timeline WHERE payment_id = $1 ORDER BY version

-- name: event
SELECT id, type, object_id, sequence, created_ms, body
FROM events
WHERE merchant_id = $1 AND livemode = $2 AND id = $3

-- name: list_events
SELECT id, type, object_id, sequence, created_ms, body
FROM events
WHERE
    merchant_id = $1 AND livemode = $2
    AND ($3::text IS NULL OR type = $3)
    AND ($4::text IS NULL OR object_id = $4)
    AND id < coalesce($5, '~')
ORDER BY id DESC
LIMIT $6

-- name: accounts
SELECT
    id, book, kind, owner, currency, livemode, created_ms, debits_pending, debits_posted,
    credits_pending, credits_posted, version
FROM account_totals
WHERE ($1::text IS NULL OR owner = $1) AND livemode = $2 AND id > $3
ORDER BY id
LIMIT $4

-- name: account
-- Now, or (with $2) after the last batch that had been recorded by then: the totals of the last
-- projection up to that batch, and the account's own transfers since. These lie either in the next
-- projection that touched the account, or in what has not been projected yet.
WITH moment AS (
    SELECT CASE
        WHEN $2::bigint IS NULL THEN 9223372036854775807
        ELSE (
            SELECT b.number
            FROM batches b
            WHERE b.recorded_ms <= $2
            ORDER BY b.recorded_ms DESC, b.number DESC
            LIMIT 1
        )
    END AS number
),

base AS (
    SELECT h.*
    FROM account_history h
    WHERE h.account_id = $1 AND h.batch <= (SELECT number FROM moment)
    ORDER BY h.batch DESC
    LIMIT 1
),

next AS (
    SELECT h.first_transfer, h.last_transfer, h.batch
    FROM account_history h
    WHERE h.account_id = $1 AND h.batch > (SELECT number FROM moment)
    ORDER BY h.batch
    LIMIT 1
),

places AS (
    SELECT
        n.first_transfer AS low, n.last_transfer AS high,
        (SELECT p.after_batch FROM projections p WHERE p.batch = n.batch) AS after_batch
    FROM next n
    UNION ALL
    SELECT u.low, u.high, u.after_batch FROM unprojected u
),

since AS (
    SELECT
        t.debit_account = $1 AS debit, t.amount,
        CASE t.phase WHEN 'posted' THEN 0 WHEN 'pending' THEN 1 ELSE -1 END AS pending,
        CASE WHEN t.phase IN ('posted', 'post_pending') THEN 1 ELSE 0 END AS posted
    FROM places
    JOIN transfers t ON t.id BETWEEN places.low AND places.high
    WHERE
        t.batch > places.after_batch AND t.batch <= (SELECT number FROM moment)
        AND (t.debit_account = $1 OR t.credit_account = $1)
),

moved AS (
    SELECT
        count(*) AS transfers,
        coalesce(sum(s.pending * s.amount) FILTER (WHERE s.debit), 0)::bigint AS dp,
        coalesce(sum(s.posted * s.amount) FILTER (WHERE s.debit), 0)::bigint AS dd,
        coalesce(sum(s.pending * s.amount) FILTER (WHERE NOT s.debit), 0)::bigint AS cp,
        coalesce(sum(s.posted * s.amount) FILTER (WHERE NOT s.debit), 0)::bigint AS cc
    FROM since s
)

SELECT
    a.id, a.book, a.kind, a.owner, a.currency, a.livemode, a.created_ms,
    coalesce(b.debits_pending, 0) + m.dp AS debits_pending,
    coalesce(b.debits_posted, 0) + m.dd AS debits_posted,
    coalesce(b.credits_pending, 0) + m.cp AS credits_pending,
    coalesce(b.credits_posted, 0) + m.cc AS credits_posted,
    coalesce(b.version, 0) + m.transfers AS version
FROM accounts a
CROSS JOIN moved m
LEFT JOIN base b ON b.account_id = a.id
WHERE a.id = $1 AND a.batch <= (SELECT number FROM moment)

-- name: account_transfers
-- By way of the account's history: each of its rows names the range of ids in which a projection's
-- transfers of this account lie; those not projected yet are looked through. Newest first means
-- last recorded first.
WITH start AS (
    SELECT
        coalesce((SELECT t.batch FROM transfers t WHERE t.id = $2), 9223372036854775807) AS batch,
        coalesce($2, 9223372036854775807) AS id
),

recent AS (
    SELECT t.*
    FROM unprojected u
    CROSS JOIN start s
    JOIN transfers t ON t.id BETWEEN u.low AND u.high
    WHERE
        t.batch > u.after_batch
        AND (t.debit_account = $1 OR t.credit_account = $1)
        AND (t.batch < s.batch OR (t.batch = s.batch AND t.id < s.id))
    ORDER BY t.batch DESC, t.id DESC
    LIMIT $3
),

-- The last projection that can hold any of what is wanted; without one, all can.
newest AS (
    SELECT coalesce(
        (SELECT min(p.batch) FROM projections p WHERE p.batch >= (SELECT batch FROM start)),
        9223372036854775807
    ) AS batch
),

earlier AS (
    SELECT t.*
    FROM account_history h
    CROSS JOIN start s
    CROSS JOIN LATERAL (
        SELECT *
        FROM transfers x
        WHERE
            x.id BETWEEN h.first_transfer AND h.last_transfer
            AND x.batch > (SELECT p.after_batch FROM projections p WHERE p.batch = h.batch)
            AND x.batch <= h.batch
            AND (x.debit_account = $1 OR x.credit_account = $1)
            AND (x.batch < s.batch OR (x.batch = s.batch AND x.id < s.id))
    ) t
    WHERE h.account_id = $1 AND h.batch <= (SELECT batch FROM newest)
    ORDER BY h.batch DESC, t.batch DESC, t.id DESC
    LIMIT $3
)

SELECT
    t.id, t.batch, t.debit_account, t.credit_account, t.amount, a.currency, t.kind, t.phase,
    t.resolves, t.link, t.payment_id, t.op, t.event_ms, b.recorded_ms, a.livemode
FROM (SELECT * FROM recent UNION ALL SELECT * FROM earlier) t
JOIN accounts a ON a.id = $1
JOIN batches b ON b.lane = 0 AND b.number = t.batch
ORDER BY t.batch DESC, t.id DESC
LIMIT $3

-- name: transfers
SELECT
    t.id, t.batch, t.debit_account, t.credit_account, t.amount, a.currency, t.kind, t.phase,
    t.resolves, t.link, t.payment_id, t.op, t.event_ms, b.recorded_ms, a.livemode
FROM transfers t
JOIN accounts a ON a.id = t.debit_account
JOIN batches b ON b.lane = 0 AND b.number = t.batch
WHERE t.id = ANY ($1::bigint []) AND ($2::text IS NULL OR t.payment_id = $2)
ORDER BY t.id

-- name: timers_due
SELECT due_ms, payment_id, kind
FROM timers
WHERE kind = $1 AND due_ms <= $2 AND (due_ms, payment_id) > ($4, $5)
ORDER BY due_ms, payment_id
LIMIT $3

-- name: inbox_open
SELECT gateway, event_id, received_ms, headers, raw
FROM webhook_inbox
WHERE outcome IS NULL AND (received_ms, gateway, event_id) > ($2, $3, $4)
ORDER BY received_ms, gateway, event_id
LIMIT $1

-- name: dead_letters
SELECT id, kind, subject, reason, body, created_ms
FROM dead_letters
WHERE done_ms IS NULL AND id < coalesce($1, '~')
ORDER BY id DESC
LIMIT $2

-- name: dead_letter
SELECT id, kind, subject, reason, body, created_ms
FROM dead_letters
WHERE id = $1 AND done_ms IS NULL

-- name: migrations_table
CREATE TABLE IF NOT EXISTS migrations (
    number integer NOT NULL,
    name text COLLATE "C" NOT NULL,
    checksum text COLLATE "C" NOT NULL,
    applied_ms bigint NOT NULL,
    CONSTRAINT migrations_pkey PRIMARY KEY (number)
)

-- name: migrations_lock
-- Held until the end of the connection: two engines that start together migrate one after the
-- other.
SELECT pg_advisory_lock(7305808869231650117)

-- name: migrations_applied
SELECT number, name, checksum FROM migrations ORDER BY number

-- name: migration_done
INSERT INTO migrations (number, name, checksum, applied_ms) VALUES ($1, $2, $3, $4)

-- What `engine verify` asks, by name. Queries that look for what is wrong give at most 20 rows,
-- each with the number of all of them as `problems`. Sums of bigint are numeric, so they can't
-- overflow.

-- name: witness_table
-- Before the transaction: a read-only one may write to a temporary table, but not make one.
CREATE TEMPORARY TABLE verify_witness (
    payment_id text COLLATE "C" NOT NULL,
    op_id text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    currency text COLLATE "C" NOT NULL,
    done boolean NOT NULL,
    at_ms bigint NOT NULL,
    changed_ms bigint NOT NULL,
    livemode boolean NOT NULL,
    number bigint NOT NULL,
    replaces bigint NOT NULL
)

-- name: snapshot
-- The first query of the transaction, so that this is the moment all others see.
SELECT count(*) AS transfers FROM transfers

-- name: accounts
SELECT
    id, book, kind, owner, currency, livemode, debits_pending, debits_posted, credits_pending,
    credits_posted
FROM account_totals
ORDER BY id

-- name: balances
WITH legs AS (
    SELECT
        debit_account AS account,
        CASE phase WHEN 'posted' THEN 0 WHEN 'pending' THEN amount ELSE -amount END AS dp,
        CASE WHEN phase IN ('posted', 'post_pending') THEN amount ELSE 0 END AS dd,
        0 AS cp, 0 AS cc
    FROM transfers
    UNION ALL
    SELECT
        credit_account, 0, 0,
        CASE phase WHEN 'posted' THEN 0 WHEN 'pending' THEN amount ELSE -amount END,
        CASE WHEN phase IN ('posted', 'post_pending') THEN amount ELSE 0 END
    FROM transfers
),

folded AS (
    SELECT account, sum(dp) AS dp, sum(dd) AS dd, sum(cp) AS cp, sum(cc) AS cc
    FROM legs
    GROUP BY account
)

SELECT
    coalesce(a.id, f.account) AS id, a.id IS NOT NULL AS there,
    concat_ws(' ', a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted) AS says,
    concat_ws(
        ' ', coalesce(f.dp, 0), coalesce(f.dd, 0), coalesce(f.cp, 0), coalesce(f.cc, 0)
    ) AS folds,
    count(*) OVER () AS problems
FROM account_totals a
FULL JOIN folded f ON f.account = a.id
WHERE
    (a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted)
    IS DISTINCT FROM
    (coalesce(f.dp, 0), coalesce(f.dd, 0), coalesce(f.cp, 0), coalesce(f.cc, 0))
ORDER BY id
LIMIT 20

-- name: trial_balance
SELECT
    book, currency, livemode,
    sum(debits_posted) - sum(credits_posted) AS posted,
    sum(debits_pending) - sum(credits_pending) AS pending,
    count(*) OVER () AS problems
FROM account_totals
GROUP BY book, currency, livemode
HAVING
    sum(debits_posted) <> sum(credits_posted) OR sum(debits_pending) <> sum(credits_pending)
ORDER BY book, currency, livemode
LIMIT 20

-- name: crossing
SELECT t.id, t.debit_account, t.credit_account, count(*) OVER () AS problems
FROM transfers t
JOIN accounts d ON d.id = t.debit_account
JOIN accounts c ON c.id = t.credit_account
WHERE (d.book, d.currency, d.livemode) <> (c.book, c.currency, c.livemode)
ORDER BY t.id
LIMIT 20

-- name: history_end
SELECT
    a.id,
    concat_ws(' ', a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted) AS says,
    concat_ws(' ', h.debits_pending, h.debits_posted, h.credits_pending, h.credits_posted) AS ends,
    a.version, coalesce(h.version, 0) AS last, count(*) OVER () AS problems
FROM accounts a
LEFT JOIN LATERAL (
    SELECT * FROM account_history x WHERE x.account_id = a.id ORDER BY x.batch DESC LIMIT 1
) h ON true
WHERE
    (a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted, a.version)
    IS DISTINCT FROM (
        coalesce(h.debits_pending, 0), coalesce(h.debits_posted, 0),
        coalesce(h.credits_pending, 0), coalesce(h.credits_posted, 0), coalesce(h.version, 0)
    )
ORDER BY a.id
LIMIT 20

-- name: projections
-- They cover the journal from its beginning without a gap.
SELECT p.batch, p.after_batch, p.before, count(*) OVER () AS problems
FROM (
    SELECT
        x.batch, x.after_batch, x.recorded_ms,
        coalesce(lag(x.batch) OVER (ORDER BY x.batch), 0) AS before
    FROM projections x
) p
LEFT JOIN batches b ON b.lane = 0 AND b.number = p.batch AND b.recorded_ms = p.recorded_ms
WHERE p.after_batch <> p.before OR b.number IS NULL
ORDER BY p.batch
LIMIT 20

-- name: history
-- Each row of an account's history against the row before it and the transfers it covers.
WITH covered AS (
    SELECT b.number, p.batch
    FROM batches b
    CROSS JOIN LATERAL (
        SELECT x.batch FROM projections x WHERE x.batch >= b.number ORDER BY x.batch LIMIT 1
    ) p
    WHERE b.lane = 0
),

pairs AS (
    SELECT
        t.debit_account, t.credit_account, c.batch, count(*) AS step,
        min(t.id) AS first, max(t.id) AS last,
        sum(
            CASE t.phase WHEN 'posted' THEN 0 WHEN 'pending' THEN t.amount ELSE -t.amount END
        ) AS pending,
        sum(CASE WHEN t.phase IN ('posted', 'post_pending') THEN t.amount ELSE 0 END) AS posted
    FROM transfers t
    JOIN covered c ON c.number = t.batch
    GROUP BY t.debit_account, t.credit_account, c.batch
),

legs AS (
    SELECT
        debit_account AS account, batch, step, first, last, pending AS dp, posted AS dd,
        0 AS cp, 0 AS cc
    FROM pairs
    UNION ALL
    SELECT credit_account, batch, step, first, last, 0, 0, pending, posted
    FROM pairs
),

moved AS (
    SELECT
        account, batch, sum(dp) AS dp, sum(dd) AS dd, sum(cp) AS cp, sum(cc) AS cc,
        sum(step) AS step, min(first) AS first, max(last) AS last
    FROM legs
    GROUP BY account, batch
),

steps AS (
    SELECT
        account_id, batch,
        debits_pending - coalesce(lag(debits_pending) OVER w, 0) AS dp,
        debits_posted - coalesce(lag(debits_posted) OVER w, 0) AS dd,
        credits_pending - coalesce(lag(credits_pending) OVER w, 0) AS cp,
        credits_posted - coalesce(lag(credits_posted) OVER w, 0) AS cc,
        version - coalesce(lag(version) OVER w, 0) AS step,
        first_transfer, last_transfer
    FROM account_history
    WINDOW w AS (PARTITION BY account_id ORDER BY batch)
)

SELECT
    coalesce(s.account_id, m.account) AS id, coalesce(s.batch, m.batch) AS batch,
    s.batch IS NOT NULL AS there, count(*) OVER () AS problems
FROM steps s
FULL JOIN moved m ON m.account = s.account_id AND m.batch = s.batch
WHERE
    (s.dp, s.dd, s.cp, s.cc, s.step, s.first_transfer, s.last_transfer)
    IS DISTINCT FROM (m.dp, m.dd, m.cp, m.cc, m.step, m.first, m.last)
ORDER BY batch, id
LIMIT 20

-- name: batches
SELECT
    lane, number, key, epoch, recorded_ms, transfers, first_transfer, last_transfer, prev_hash,
    hash
FROM batches
ORDER BY lane, number

-- name: batch_transfers
-- In the order of the tuples that a batch's hash covers, after the batch.
SELECT
    batch, id, debit_account, credit_account, amount, kind, phase, resolves, link, payment_id, op,
    event_ms
FROM transfers
ORDER BY batch, id

-- name: batch_accounts
-- The same for the accounts that a batch opened.
SELECT batch, id, book, kind, owner, currency, livemode FROM accounts ORDER BY batch, id

-- name: second_phases
SELECT
    s.id, s.resolves, p.id IS NOT NULL AS there, s.payment_id, count(*) OVER () AS problems
FROM transfers s
LEFT JOIN transfers p ON p.id = s.resolves
WHERE
    s.resolves > 0
    AND (
        p.phase = 'pending' AND p.debit_account = s.debit_account
        AND p.credit_account = s.credit_account AND p.payment_id = s.payment_id
        AND p.kind = s.kind
    ) IS NOT TRUE
ORDER BY s.id
LIMIT 20

-- name: overdrawn
SELECT
    p.id, p.amount, p.payment_id, sum(s.amount)::text AS taken, count(*) OVER () AS problems
FROM transfers s
JOIN transfers p ON p.id = s.resolves
WHERE s.resolves > 0
GROUP BY p.id, p.amount, p.payment_id
HAVING sum(s.amount) > p.amount
ORDER BY p.id
LIMIT 20

-- name: payments
SELECT
    id, merchant_id, livemode, open, slot, version, created_ms, amount, authorized, capturing,
    captured, releasing, released, refunding, refunded, excess_captured, excess_refunded, status,
    currency, customer, subscription, reference, reference_held, has_work, doc
FROM payments
ORDER BY id

-- name: payment_transfers
SELECT
    payment_id, op, kind, phase, debit_account, credit_account,
    sum(amount)::text AS amount, count(*) AS transfers, min(id) AS first
FROM transfers
GROUP BY payment_id, op, kind, phase, debit_account, credit_account
ORDER BY payment_id, op, kind, phase, debit_account, credit_account

-- name: payment_timers
SELECT payment_id, kind, due_ms FROM timers ORDER BY payment_id

-- name: payment_letters
-- Also those that somebody has dealt with: a person has seen the payment.
SELECT subject AS payment_id, max(created_ms) AS created_ms
FROM dead_letters
GROUP BY subject
ORDER BY subject

-- name: witness
SELECT
    payment_id, op_id, action, amount, currency, done, at_ms, changed_ms, livemode, number,
    replaces
FROM verify_witness
ORDER BY payment_id, op_id, number, at_ms

-- name: promises
-- A request that was refused before anything was begun may name a payment that never was; one
-- that is still awaited, or whose answer tells of an operation's outcome, may not.
SELECT
    i.merchant_id, i.livemode, i.key, i.payment_id, i.status, count(*) OVER () AS problems
FROM idempotency i
LEFT JOIN payments p ON p.id = i.payment_id
WHERE
    p.id IS NULL
    AND (i.status IS NULL OR i.status < 400 OR i.code IN ('payment_declined', 'gateway_failed'))
ORDER BY i.merchant_id, i.livemode, i.key
LIMIT 20

-- name: promises_count
SELECT count(*) FROM idempotency

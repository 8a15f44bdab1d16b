-- The ledger's schema, to be read from top to bottom.
--
-- What is applied is engine/ledger/migrations/, in order; this file is the sum of them, and
-- tests/real/ledger/test_schema.py builds a database from each and compares the two. Change both:
-- a new migration for the databases that exist, this file for those who read.
--
-- The ideas, in the order of the sections:
--
--   1. One engine writes at a time. A row holds its epoch, and every commit checks it.
--   2. A group commit is one numbered batch of a journal whose hashes form a chain.
--   3. Transfers are only ever added. Accounts carry running totals of them, which are projected
--      a moment behind the journal, and a history of their totals. What is read is always exact:
--      the projected totals, and the transfers since.
--   4. A payment is one row. Check constraints on that row guard what is asked for: it is what
--      stops a double refund, which no isolation level does by itself.
--   5. Idempotency keys and events: what clients were, and will be, told.
--   6. Timers, webhooks and dead letters: work that waits.
--   7. append_batch: all of it in one statement.
--   8. Views for people.
--
-- Conventions: amounts are integers in minor units; times are Unix milliseconds and end in _ms;
-- text is compared by its bytes (COLLATE "C"), so that ids sort by time; JSON is kept as bytea, in
-- the bytes it came in. There are no foreign keys: every row of a commit is written by one
-- function, rows are never deleted by hand, and `engine verify` proves more than a key would.
-- No extension is needed.

-- ======================================================================================
-- 0. Migrations that have been applied
-- ======================================================================================

CREATE TABLE migrations (
    number integer NOT NULL,
    name text COLLATE "C" NOT NULL,
    checksum text COLLATE "C" NOT NULL,
    applied_ms bigint NOT NULL,
    CONSTRAINT migrations_pkey PRIMARY KEY (number)
);

-- ======================================================================================
-- 1. Who may write
-- ======================================================================================

-- Every take-over adds one to the epoch. Each group commit names the epoch it believes in and
-- takes a share lock on this row, so that a take-over waits for the commit in flight, and every
-- commit after it fails. The advisory lock alone would not fence: it belongs to one connection,
-- and the commits of an engine whose lock was lost come over another.
CREATE TABLE engine_epoch (
    one boolean NOT NULL DEFAULT true,
    epoch bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    since_ms bigint NOT NULL,
    CONSTRAINT engine_epoch_pkey PRIMARY KEY (one),
    CONSTRAINT engine_epoch_single_row CHECK (one)
);

INSERT INTO engine_epoch (epoch, owner, since_ms) VALUES (0, '', 0);

-- ======================================================================================
-- 2. The journal
-- ======================================================================================

-- One row per group commit, numbered from 1 without gaps in its lane. `hash` covers `prev_hash`,
-- this row's number, key and time, the accounts it opened and its transfers in canonical form
-- (engine/domain/journal.py). The row is inserted first: a retry after a lost COMMIT reply
-- carries the same key and meets it.
CREATE TABLE batches (
    lane smallint NOT NULL,
    number bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    recorded_ms bigint NOT NULL,
    transfers integer NOT NULL,
    first_transfer bigint NOT NULL,
    last_transfer bigint NOT NULL,
    prev_hash bytea NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT batches_pkey PRIMARY KEY (lane, number),
    CONSTRAINT batches_key_key UNIQUE (key),
    CONSTRAINT batches_number_positive CHECK (number > 0),
    CONSTRAINT batches_hash_length CHECK (length(prev_hash) = 32 AND length(hash) = 32)
);

-- Finds the last batch that had been recorded at a given time.
CREATE INDEX batches_recorded ON batches (recorded_ms, number);

-- ======================================================================================
-- 3. Accounts and transfers
-- ======================================================================================

-- Four running totals, as TigerBeetle keeps them, in minor units, as of the last projection: read
-- `account_totals`, which adds what has been recorded since. Nothing bounds a balance from below: a
-- dispute after a payout is a fact. A pending total below zero however means that a second phase
-- took more than was held, which is a bug of ours; the engine refuses it before it commits.
-- The fill factor leaves room for the next version of the row on its page, and no index covers
-- what changes: so an update of a total stays on the page (HOT) and touches no index.
CREATE TABLE accounts (
    id bigint NOT NULL,
    book text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    livemode boolean NOT NULL,
    batch bigint NOT NULL,
    created_ms bigint NOT NULL,
    debits_pending bigint NOT NULL DEFAULT 0,
    debits_posted bigint NOT NULL DEFAULT 0,
    credits_pending bigint NOT NULL DEFAULT 0,
    credits_posted bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    CONSTRAINT accounts_pkey PRIMARY KEY (id),
    CONSTRAINT accounts_key UNIQUE (book, kind, owner, currency, livemode),
    CONSTRAINT accounts_id_positive CHECK (id > 0),
    CONSTRAINT accounts_pending_not_negative CHECK (debits_pending >= 0 AND credits_pending >= 0),
    CONSTRAINT accounts_posted_not_negative CHECK (debits_posted >= 0 AND credits_posted >= 0)
) WITH (fillfactor = 40);

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

-- An account's totals after each projection that touched it; `version` counts its transfers. It
-- answers what an account's balance was at a time, and it finds an account's transfers without an
-- index on the transfers' accounts, which every transfer would pay for twice: the account's
-- transfers of a projection's batches lie between the two ids given here.
CREATE TABLE account_history (
    account_id bigint NOT NULL,
    batch bigint NOT NULL,
    recorded_ms bigint NOT NULL,
    debits_pending bigint NOT NULL,
    debits_posted bigint NOT NULL,
    credits_pending bigint NOT NULL,
    credits_posted bigint NOT NULL,
    version bigint NOT NULL,
    first_transfer bigint NOT NULL,
    last_transfer bigint NOT NULL,
    CONSTRAINT account_history_pkey PRIMARY KEY (account_id, batch)
);

-- A transfer moves one amount from the debit to the credit account, so it balances by
-- construction. `resolves` is the pending transfer that a second phase acts on, and `link` joins
-- the legs of one event; 0 stands for none. Currency and mode are those of its accounts.
CREATE TABLE transfers (
    id bigint NOT NULL,
    batch bigint NOT NULL,
    debit_account bigint NOT NULL,
    credit_account bigint NOT NULL,
    amount bigint NOT NULL,
    resolves bigint NOT NULL,
    link bigint NOT NULL,
    event_ms bigint NOT NULL,
    op integer NOT NULL,
    kind text COLLATE "C" NOT NULL,
    phase text COLLATE "C" NOT NULL,
    payment_id text COLLATE "C" NOT NULL,
    CONSTRAINT transfers_pkey PRIMARY KEY (id),
    CONSTRAINT transfers_id_positive CHECK (id > 0),
    CONSTRAINT transfers_amount_positive CHECK (amount > 0),
    CONSTRAINT transfers_two_accounts CHECK (debit_account <> credit_account),
    CONSTRAINT transfers_phase CHECK (
        CASE
            WHEN phase IN ('posted', 'pending') THEN resolves = 0
            WHEN phase IN ('post_pending', 'void_pending', 'expire_pending') THEN resolves > 0
            ELSE false
        END
    )
);

-- The journal is append-only: a correction is a new transfer.
CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'PE005', HINT = 'Correct a transfer with a new transfer.';
END
$$;

CREATE TRIGGER transfers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER batches_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON batches
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER projections_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON projections
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER account_history_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON account_history
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

-- ======================================================================================
-- 4. Payments
-- ======================================================================================

-- `doc` is the whole payment as JSON; the columns repeat what is searched, and what the database
-- guards: nothing is captured, released or refunded that was not authorised or captured, whatever
-- the code above believes. What a gateway reports beyond that is counted in the excess columns.
-- Only `open` and `reference_held` are both indexed and ever changed, and neither by what turns out
-- well, so that the update from intent to authorisation is HOT. `has_work` tells a starting shard
-- which documents it has to read: where it is false, nothing is under way or to be tried again.
CREATE TABLE payments (
    id text COLLATE "C" NOT NULL,
    merchant_id text COLLATE "C" NOT NULL,
    livemode boolean NOT NULL,
    open boolean NOT NULL,
    slot smallint NOT NULL,
    version integer NOT NULL,
    created_ms bigint NOT NULL,
    amount bigint NOT NULL,
    authorized bigint NOT NULL,
    capturing bigint NOT NULL,
    captured bigint NOT NULL,
    releasing bigint NOT NULL,
    released bigint NOT NULL,
    refunding bigint NOT NULL,
    refunded bigint NOT NULL,
    excess_captured bigint NOT NULL,
    excess_refunded bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    customer text COLLATE "C",
    subscription text COLLATE "C",
    reference text COLLATE "C",
    reference_held boolean NOT NULL,
    doc bytea NOT NULL,
    has_work boolean NOT NULL,
    CONSTRAINT payments_pkey PRIMARY KEY (id),
    CONSTRAINT payments_amount_positive CHECK (amount > 0),
    CONSTRAINT payments_counters_not_negative CHECK (
        least(
            authorized, capturing, captured, releasing, released,
            refunding, refunded, excess_captured, excess_refunded
        ) >= 0
    ),
    CONSTRAINT payments_within_authorized CHECK (
        captured + capturing + released + releasing <= authorized
    ),
    CONSTRAINT payments_within_captured CHECK (refunded + refunding <= captured)
) WITH (fillfactor = 45);

-- Lists: ids sort by time.
CREATE INDEX payments_list ON payments (merchant_id, livemode, id);

-- A merchant's reference is held by one payment at most. One that never came about (declined,
-- failed) gives it up for the next attempt: its own id then tells it from all others, and it is
-- still found by its reference.
CREATE UNIQUE INDEX payments_reference ON payments (
    merchant_id, livemode, reference, (CASE WHEN reference_held THEN '' ELSE id END)
)
WHERE reference IS NOT NULL;

-- What a shard loads when it starts.
CREATE INDEX payments_open ON payments (slot, id) WHERE open;

-- What each commit added to a payment's timeline; `steps` is a JSON array.
CREATE TABLE timeline (
    payment_id text COLLATE "C" NOT NULL,
    version integer NOT NULL,
    batch bigint NOT NULL,
    recorded_ms bigint NOT NULL,
    steps bytea NOT NULL,
    CONSTRAINT timeline_pkey PRIMARY KEY (payment_id, version)
);

-- A refund as it is read and listed; `body` is its representation, JSON.
CREATE TABLE refunds (
    id text COLLATE "C" NOT NULL,
    payment_id text COLLATE "C" NOT NULL,
    merchant_id text COLLATE "C" NOT NULL,
    livemode boolean NOT NULL,
    created_ms bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    body bytea NOT NULL,
    CONSTRAINT refunds_pkey PRIMARY KEY (id)
) WITH (fillfactor = 60);

CREATE INDEX refunds_list ON refunds (merchant_id, livemode, id);

CREATE INDEX refunds_payment ON refunds (payment_id, id);

-- ======================================================================================
-- 5. Promises to clients
-- ======================================================================================

-- What an idempotency key is found by: sixteen bytes of a SHA-256. Keys are random, so each lands
-- on another page of its index, and the first one on a page after a checkpoint takes the whole page
-- into the log: half the index is half of these pages. The length makes the text unambiguous, and a
-- doubled backslash is one to bytea. All of it is immutable, so that Postgres puts the expression
-- where the call stands: the call would cost 7 us instead of 2.
CREATE FUNCTION key_digest(merchant_id text, livemode boolean, key text) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(substring(sha256(replace(
    CASE WHEN livemode THEN 'live ' ELSE 'test ' END || length(key)::text || ' ' || key
    || merchant_id, '\', '\\'
)::bytea) FROM 1 FOR 16), 'hex')::uuid;

-- An idempotency key is claimed in the commit of its request's intent, so a key that is used at
-- two places at once loses before any gateway is called. `status` is null until the final answer
-- is known; then the answer is replayed byte for byte. The answer is several times the size of the
-- claim: the fill factor leaves room for it on the page, which takes less space in all than to
-- move each row once.
CREATE TABLE idempotency (
    merchant_id text COLLATE "C" NOT NULL,
    livemode boolean NOT NULL,
    status smallint,
    op integer NOT NULL,
    batch bigint NOT NULL,
    created_ms bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    payment_id text COLLATE "C" NOT NULL,
    code text COLLATE "C",
    location text COLLATE "C",
    body bytea,
    answered_ms bigint,
    CONSTRAINT idempotency_answer_whole CHECK (
        (status IS NULL) = (body IS NULL) AND (status IS NULL) = (code IS NULL)
    )
) WITH (fillfactor = 20);

CREATE UNIQUE INDEX idempotency_key ON idempotency (key_digest(merchant_id, livemode, key));

-- An expression can't tell a logical replica which row is meant.
ALTER TABLE idempotency REPLICA IDENTITY FULL;

-- Answered keys are forgotten by age, but not soon after a late answer: `answered_ms` is null where
-- the answer came with the claim. Minima per block range (BRIN) would be smaller, but would not
-- find the old ones any more once new ones have taken the room of the oldest.
CREATE INDEX idempotency_age ON idempotency (created_ms);

-- What time it is, as far as this database believes: keys are forgotten by it. It follows the
-- engine's clock by a multiple of what has passed at most, so that a clock which is wrong for an
-- hour makes no key a month old. Null: anything is believed. None goes before `keys_from_ms` is
-- old itself: there were keys then of which it was not known when they had been answered.
CREATE TABLE believed_time (
    one boolean NOT NULL DEFAULT true,
    at_ms bigint,
    keys_from_ms bigint NOT NULL,
    CONSTRAINT believed_time_pkey PRIMARY KEY (one),
    CONSTRAINT believed_time_single_row CHECK (one)
);

INSERT INTO believed_time (at_ms, keys_from_ms) VALUES (NULL, 0);

-- The outbox: what a merchant is told of. `body` is JSON, in the bytes its webhook carries.
CREATE TABLE events (
    merchant_id text COLLATE "C" NOT NULL,
    livemode boolean NOT NULL,
    sequence integer NOT NULL,
    created_ms bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    object_id text COLLATE "C" NOT NULL,
    body bytea NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (merchant_id, livemode, id)
);

-- ======================================================================================
-- 6. Work that waits
-- ======================================================================================

-- Durable wishes to be woken. Rows come and go with every payment, so it is vacuumed often.
CREATE TABLE timers (
    kind text COLLATE "C" NOT NULL,
    due_ms bigint NOT NULL,
    payment_id text COLLATE "C" NOT NULL,
    CONSTRAINT timers_pkey PRIMARY KEY (kind, due_ms, payment_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

-- Webhooks as they came in, stored before they are answered. A provider repeats them: the key
-- makes the second one no news. `headers` is a JSON object. `outcome` is null until dealt with.
CREATE TABLE webhook_inbox (
    gateway text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    received_ms bigint NOT NULL,
    done_ms bigint,
    outcome text COLLATE "C",
    headers bytea NOT NULL,
    raw bytea NOT NULL,
    CONSTRAINT webhook_inbox_pkey PRIMARY KEY (gateway, event_id)
);

CREATE INDEX webhook_inbox_open ON webhook_inbox (received_ms) WHERE outcome IS NULL;

-- Work that could not be done and waits for a person; `done_ms` is null until somebody has dealt
-- with it.
CREATE TABLE dead_letters (
    id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    reason text COLLATE "C" NOT NULL,
    created_ms bigint NOT NULL,
    done_ms bigint,
    body bytea NOT NULL,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (id)
);

CREATE INDEX dead_letters_open ON dead_letters (id) WHERE done_ms IS NULL;

-- ======================================================================================
-- 7. The group commit
-- ======================================================================================

-- The rows of a group commit come as arrays of these types. Arrays of composites took half the
-- time of one array per column, on either side of the connection.
CREATE TYPE account_input AS (
    id bigint, book text, kind text, owner text, currency text, livemode boolean
);

CREATE TYPE transfer_input AS (
    id bigint, debit_account bigint, credit_account bigint, amount bigint, kind text, phase text,
    resolves bigint, link bigint, payment_id text, op integer, event_ms bigint
);

CREATE TYPE payment_input AS (
    id text, merchant_id text, livemode boolean, open boolean, slot smallint, version integer,
    created_ms bigint, amount bigint, authorized bigint, capturing bigint, captured bigint,
    releasing bigint, released bigint, refunding bigint, refunded bigint, excess_captured bigint,
    excess_refunded bigint, status text, currency text, customer text, subscription text,
    reference text, doc bytea, reference_held boolean, has_work boolean
);

-- `expected` is the version the row must have.
CREATE TYPE payment_change AS (
    id text, expected integer, version integer, open boolean, authorized bigint, capturing bigint,
    captured bigint, releasing bigint, released bigint, refunding bigint, refunded bigint,
    excess_captured bigint, excess_refunded bigint, status text, doc bytea, reference_held boolean,
    has_work boolean
);

CREATE TYPE claim_input AS (
    merchant_id text, livemode boolean, key text, fingerprint bytea, created_ms bigint,
    payment_id text, op integer, status smallint, body bytea, code text, location text
);

CREATE TYPE answer_input AS (
    merchant_id text, livemode boolean, key text, status smallint, body bytea, code text,
    location text
);

CREATE TYPE key_input AS (merchant_id text, livemode boolean, key text);

CREATE TYPE event_input AS (
    merchant_id text, livemode boolean, sequence integer, created_ms bigint, id text, type text,
    object_id text, body bytea
);

CREATE TYPE refund_input AS (
    id text, payment_id text, merchant_id text, livemode boolean, created_ms bigint, status text,
    body bytea
);

CREATE TYPE timeline_input AS (payment_id text, version integer, steps bytea);

CREATE TYPE timer_input AS (kind text, due_ms bigint, payment_id text);

CREATE TYPE inbox_input AS (
    gateway text, event_id text, received_ms bigint, headers bytea, raw bytea
);

-- `dead_letter` is the letter that is closed along with it.
CREATE TYPE inbox_reopened_input AS (gateway text, event_id text, dead_letter text);

CREATE TYPE inbox_done_input AS (gateway text, event_id text, outcome text);

CREATE TYPE dead_letter_input AS (
    id text, kind text, subject text, reason text, created_ms bigint, body bytea
);

-- Some arrays have names of their own: the engine packs these itself (engine/ledger/packing.py),
-- and its driver takes ready-made bytes for a domain, not for an array.
CREATE DOMAIN transfer_inputs AS transfer_input [];
CREATE DOMAIN timeline_inputs AS timeline_input [];
CREATE DOMAIN timer_inputs AS timer_input [];

-- A second phase repeats the accounts of what it resolves, and takes no more than that. That its
-- parts together take no more is proved by `verify`, and guarded roughly by the pending totals,
-- which the engine does not let fall below zero.
CREATE FUNCTION check_second_phases(in_first_transfer bigint, in_last_transfer bigint) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (
        SELECT FROM transfers t LEFT JOIN transfers p ON p.id = t.resolves
        WHERE t.id BETWEEN in_first_transfer AND in_last_transfer AND t.resolves > 0 AND (
            p.phase = 'pending' AND p.debit_account = t.debit_account
            AND p.credit_account = t.credit_account AND p.amount >= t.amount
        ) IS NOT TRUE
    ) THEN
        RAISE EXCEPTION 'a second phase does not fit what it resolves' USING ERRCODE = 'PE006';
    END IF;
END
$$;

-- Applies one group commit whole, in one statement and one round trip. An argument that is null
-- has no rows. Of many transfers only the number is given; they follow by COPY, in the same
-- transaction, and so does the check of their second phases. Returns true; or false where this very
-- batch had been applied before, by a try whose answer was lost. Its own errors:
--   PE001  another engine has taken over
--   PE002  idempotency keys are taken; the detail is a JSON array of [merchant, mode, key]
--   PE003  a payment does not have the version that was expected
--   PE004  the batch does not continue the chain
--   PE006  a second phase does not fit the transfer it resolves
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

-- ======================================================================================
-- 8. For people who look
-- ======================================================================================

CREATE VIEW payment_documents AS
SELECT p.id, p.merchant_id, p.livemode, p.status, convert_from(p.doc, 'UTF8')::jsonb AS doc
FROM payments p;

CREATE VIEW payment_timelines AS
SELECT
    t.payment_id, t.version, t.batch, to_timestamp(t.recorded_ms / 1000.0) AS recorded,
    s.step ->> 'step' AS step, to_timestamp((s.step ->> 'at_ms')::bigint / 1000.0) AS happened,
    s.step ->> 'op' AS op, s.step -> 'detail' AS detail
FROM timeline t
CROSS JOIN LATERAL jsonb_array_elements(convert_from(t.steps, 'UTF8')::jsonb) WITH ORDINALITY
    AS s (step, n);

CREATE VIEW event_documents AS
SELECT
    e.merchant_id, e.livemode, e.id, e.type, e.object_id, e.sequence,
    to_timestamp(e.created_ms / 1000.0) AS created, convert_from(e.body, 'UTF8')::jsonb AS body
FROM events e;

-- Zero in every row, or the books do not balance. Sums are numeric, so they can't overflow.
CREATE VIEW trial_balance AS
SELECT
    a.book, a.currency, a.livemode,
    sum(a.debits_posted) - sum(a.credits_posted) AS posted,
    sum(a.debits_pending) - sum(a.credits_pending) AS pending
FROM account_totals a
GROUP BY a.book, a.currency, a.livemode;

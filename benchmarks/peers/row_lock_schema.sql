-- Tables of row_lock.sql, made anew for each run.
DROP TABLE IF EXISTS lock_accounts, lock_transfers;
CREATE TABLE lock_accounts (
    id bigint PRIMARY KEY,
    balance bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 40);
CREATE TABLE lock_transfers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    debit bigint NOT NULL,
    credit bigint NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    recorded timestamptz NOT NULL DEFAULT now()
);
INSERT INTO lock_accounts (id) SELECT generate_series(1, 10000);
VACUUM ANALYZE lock_accounts;

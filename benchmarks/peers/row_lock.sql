-- A transfer as it is usually written: both account rows locked in order, checked and brought up
-- to date, one line in the journal, one transaction. pgbench runs it for every client at once.
\set a random(1, 10000)
\set b random(1, 10000)
BEGIN;
SELECT balance FROM lock_accounts WHERE id IN (:a, :b) ORDER BY id FOR UPDATE;
INSERT INTO lock_transfers (debit, credit, amount) VALUES (:a, :b, 100);
UPDATE lock_accounts SET balance = balance - 100, version = version + 1 WHERE id = :a;
UPDATE lock_accounts SET balance = balance + 100, version = version + 1 WHERE id = :b;
COMMIT;

"""The double-entry ledger: Postgres, its in-memory twin, migrations and verification."""

"""The actors. They know only anyio, messages and ports, so they run under any clock.

One payment's way through them: `router` -> `shard` -> `ledger_writer` -> `shard` -> `gateway` ->
`shard` -> `ledger_writer` -> `shard` -> `router`. `system` puts them together under supervision.
"""

"""Millions of payments in minutes: a real payment's rows, copied in SQL with ids of their own.

The engine makes one payment; its rows are the template. What names it in them (ids, keys, numbers
of transfers) is replaced, everything else is repeated. Batches are sealed as the engine seals them
and accounts and their history are brought up to date, so that `engine verify` holds on the result.
The simulator's books know nothing of the copies, so that only a verification without them (by
DATABASE_URL) can hold; and all copies are of one merchant and one moment.

The engine must not run meanwhile: it keeps the head of the chain in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import asyncpg

from engine.domain.ids import SLOTS, new_id
from engine.domain.journal import seal

TABLES = {
    "payments": "id",
    "timeline": "payment_id",
    "idempotency": "payment_id",
    "events": "object_id",
    "timers": "payment_id",
}
"""Table -> the column that names the payment."""
BATCH = 1_000
CHUNK = 100_000
BYTES_EACH = 14_000
"""Disk for a settled payment with its indexes and its share of the log; 58 GiB for five million."""

_NUMBERS = re.compile(r'"(?:transfer|hold)":(\d+)|"transfers":"(\d+(?:,\d+)*)"')

_CHUNK = """
INSERT INTO pg_temp.chunk
SELECT n, 'pay_' || s.head || lpad(to_hex(n), 12, '0'), s.head, s.slot,
    {first} + (n - 1) * {each}, {batch} + 1 + (n - 1) / {size}
FROM generate_series({low}::bigint, {high}::bigint) n
JOIN pg_temp.slots s ON s.slot = (n - 1) * {slots} / {count}
"""

Say = Callable[[str], None]


class Template(NamedTuple):
    """The rows of one payment, and where the journal ends."""

    payment: str
    rows: dict[str, list[dict[str, Any]]]
    transfers: list[dict[str, Any]]
    head: dict[str, Any]


async def replicate(dsn: str, payment_id: str, count: int, say: Say) -> None:
    """Add `count` copies of a payment, in whole batches."""
    count -= count % BATCH
    connection = await asyncpg.connect(dsn)
    try:
        template = await read_template(connection, payment_id)
        await prepare(connection, payment_id)
        hash_ = template.head["hash"]
        for low in range(1, count + 1, CHUNK):
            high = min(low + CHUNK - 1, count)
            async with connection.transaction():
                await fill_chunk(connection, template, low, high, count)
                for statement in inserts(template):
                    await connection.execute(statement)
                hash_ = await write_batches(connection, template, low, high, count, hash_)
            say(f"{high:,} of {count:,} payments")
        await finish(connection)
    finally:
        await connection.close()


async def read_template(connection: asyncpg.Connection, payment_id: str) -> Template:
    """All rows that name the payment."""
    rows = {
        table: [
            dict(row)
            for row in await connection.fetch(
                f"SELECT * FROM {table} WHERE {column} = $1", payment_id
            )
        ]
        for table, column in TABLES.items()
    }
    transfers = await connection.fetch(
        "SELECT * FROM transfers WHERE payment_id = $1 ORDER BY id", payment_id
    )
    head = await connection.fetchrow(
        "SELECT b.*, (SELECT max(last_transfer) FROM batches) AS last FROM batches b "
        "ORDER BY number DESC LIMIT 1"
    )
    assert head is not None, "the payment exists and moved money"
    return Template(payment_id, rows, [dict(row) for row in transfers], dict(head))


async def prepare(connection: asyncpg.Connection, payment_id: str) -> None:
    """Numbers for all slots; and the keys' index, which has no order to fill it in, is put off."""
    created_ms = await connection.fetchval(
        "SELECT created_ms FROM payments WHERE id = $1", payment_id
    )
    await connection.execute("CREATE TEMP TABLE slots (slot bigint PRIMARY KEY, head text)")
    await connection.copy_records_to_table(
        "slots",
        records=[(n, new_id("", created_ms, n, 0)[:12]) for n in range(SLOTS)],
        schema_name="pg_temp",
    )
    await connection.execute(
        "CREATE TEMP TABLE chunk (n bigint, pid text, head text, slot smallint, "
        "transfer bigint, batch bigint)"
    )
    # The engine leaves room on a page for what its rows grow into; these are whole. Three payments
    # fill a page that the engine has written: with two, each page would take one more of the
    # payments to come, and the log the page.
    await connection.execute("ALTER TABLE payments SET (fillfactor = 50)")
    await connection.execute("ALTER TABLE idempotency SET (fillfactor = 95)")
    await connection.execute("DROP INDEX idempotency_key")
    await connection.execute("SET maintenance_work_mem = '512MB'")


async def finish(connection: asyncpg.Connection) -> None:
    """As it was, and as a database that has been there for a while."""
    await connection.execute(
        "CREATE UNIQUE INDEX idempotency_key "
        "ON idempotency (key_digest(merchant_id, livemode, key))"
    )
    await connection.execute("ALTER TABLE payments SET (fillfactor = 45)")
    await connection.execute("ALTER TABLE idempotency SET (fillfactor = 20)")
    await connection.execute("VACUUM (ANALYZE)")
    await connection.execute("CHECKPOINT")


async def fill_chunk(
    connection: asyncpg.Connection, template: Template, low: int, high: int, count: int
) -> None:
    """The ids of the copies from `low` to `high`."""
    await connection.execute("TRUNCATE pg_temp.chunk")
    await connection.execute(
        _CHUNK.format(
            first=template.head["last"] + 1, each=len(template.transfers),
            batch=template.head["number"], size=BATCH, low=low, high=high, slots=SLOTS,
            count=count,
        )
    )  # fmt: skip


def inserts(template: Template) -> list[str]:
    """One statement per row of the template: it inserts that row's copies."""
    tokens = tokens_of(template)
    numbers = {t["id"]: f"(c.transfer + {k})::bigint" for k, t in enumerate(template.transfers)}
    statements = []
    for table, rows in template.rows.items():
        for row in rows:
            columns = {name: value_sql(value, tokens, numbers) for name, value in row.items()}
            columns |= {"batch": "c.batch"} if "batch" in row else {}
            columns |= {"slot": "c.slot"} if "slot" in row else {}
            statements.append(insert_sql(table, columns))
    for transfer in template.transfers:
        columns = {name: value_sql(value, tokens, numbers) for name, value in transfer.items()}
        columns["batch"] = "c.batch"
        for name in ("id", "resolves", "link"):
            columns[name] = numbers.get(transfer[name], "0")
        statements.append(insert_sql("transfers", columns))
    return statements


def insert_sql(table: str, columns: dict[str, str]) -> str:
    """An INSERT from the chunk."""
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) "
        f"SELECT {', '.join(columns.values())} FROM pg_temp.chunk c ORDER BY c.n"
    )


def tokens_of(template: Template) -> dict[str, str]:
    """What names the template's payment in its rows -> SQL of what names a copy's."""
    tokens = {template.payment: "c.pid"}
    for n, row in enumerate(template.rows["idempotency"]):
        tokens[row["key"]] = f"md5('{n}:' || c.n)"
    for n, row in enumerate(template.rows["events"]):
        tokens[row["id"]] = f"'evt_' || c.head || lpad(to_hex(c.n * 64 + {n}), 12, '0')"
    return tokens


def value_sql(value: Any, tokens: dict[str, str], numbers: dict[int, str]) -> str:
    """A value of the template as SQL, with a copy's names in it."""
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, bytes):
        try:
            return f"convert_to({text_sql(value.decode(), tokens, numbers)}, 'UTF8')"
        except UnicodeDecodeError:
            return f"'\\x{value.hex()}'::bytea"
    return text_sql(str(value), tokens, numbers)


def text_sql(text: str, tokens: dict[str, str], numbers: dict[int, str]) -> str:
    """A text as a concatenation of what is repeated and what is replaced."""
    replaced: list[str] = []

    def mark(sql: str) -> str:
        replaced.append(sql)
        return f"\x00{len(replaced) - 1}\x00"

    def mark_numbers(found: re.Match[str]) -> str:
        whole, digits = found[0], found[1] or found[2]
        marked = ",".join(mark(numbers[int(n)]) for n in digits.split(","))
        return whole.replace(f":{digits}", f":{marked}").replace(f'"{digits}"', f'"{marked}"')

    text = _NUMBERS.sub(mark_numbers, text)
    for token, sql in tokens.items():
        text = text.replace(token, mark(sql))
    parts = [
        replaced[int(part)] if at % 2 else quote(part)
        for at, part in enumerate(text.split("\x00"))
        if at % 2 or part
    ]
    return f"concat({', '.join(parts)})" if parts else "''"


def quote(text: str) -> str:
    """A literal."""
    return "'" + text.replace("'", "''") + "'"


async def write_batches(
    connection: asyncpg.Connection,
    template: Template,
    low: int,
    high: int,
    count: int,
    hash_: bytes,
) -> bytes:
    """Seal the chunk's batches and project their totals; returns the last hash."""
    ids = await connection.fetch("SELECT pid, transfer, batch FROM pg_temp.chunk ORDER BY n")
    head, each = template.head, len(template.transfers)
    batches = []
    for at in range(0, len(ids), BATCH):
        some = ids[at : at + BATCH]
        number, first = some[0]["batch"], some[0]["transfer"]
        key = f"b_copy_{number}"
        sealed = [
            (row["transfer"] + k, t["debit_account"], t["credit_account"], t["amount"], t["kind"],
             t["phase"], *(_number(t[name], row["transfer"], template) for name in _REFERENCES),
             row["pid"], t["op"], t["event_ms"])
            for row in some
            for k, t in enumerate(template.transfers)
        ]  # fmt: skip
        before, hash_ = hash_, seal(hash_, number, key, head["recorded_ms"], sealed)
        last = first + len(some) * each - 1
        batches.append((0, number, key, head["epoch"], head["recorded_ms"], len(sealed), first,
                        last, before, hash_))  # fmt: skip
    await connection.copy_records_to_table("batches", records=batches)
    await connection.execute("SELECT project_totals($1, $1)", 2**62)
    return hash_


_REFERENCES = ("resolves", "link")


def _number(transfer: int, first: int, template: Template) -> int:
    """The number of the copy's transfer that stands where the template's did; 0 for none."""
    for k, t in enumerate(template.transfers):
        if t["id"] == transfer:
            return first + k
    return 0

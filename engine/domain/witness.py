"""What a gateway's own books say was done, in the ledger's words.

A witness owes the ledger nothing: the simulator's books in development, a settlement file
elsewhere. Whoever reads one turns each of its lines into a `WitnessEffect`, in any order.
"""

from __future__ import annotations

import msgspec

from engine.domain.news import Action


class WitnessEffect(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One line of a witness. `amount` is in minor units, times are Unix milliseconds.

    `done`: money has moved, or is held, for it as of now; false for what was declined, still
    waits, was canceled while it waited, or came back. `at_ms`: when it was asked for.
    `changed_ms`: when `done` became what it is; a recent change may not have been heard yet.
    `number` is the line's own; `replaces` names the earlier line of the same operation that this
    one supersedes, 0 for none.
    """

    op_id: str
    action: Action
    amount: int
    currency: str
    done: bool
    at_ms: int
    changed_ms: int
    livemode: bool = False
    number: int = 0
    replaces: int = 0

"""The magic payment methods of the simulator, as a table.

Each row says how the simulator treats an authorize or purchase with that method, and what it does
to the charge's refunds later. README.md lists what a merchant rehearses with.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from engine.domain.news import Card

ReplyKind = Literal[
    "news",  # an answer that can be read
    "none",  # no answer, ever
    "server_error",  # an HTTP 500 that says nothing about the operation
    "garbage",  # JSON that stops in the middle
    "unreachable",  # connection refused: nothing was sent
]

Course = Literal[
    "done",  # at once
    "declined",  # refused by the issuer
    "open",  # when the customer has acted
    "pending",  # by itself, later
    "nothing",  # never: the request had no effect
]

Webhook = Literal["as_configured", "twice", "early", "never"]

Refunds = Literal["succeed", "fail", "fail_late"]

OPEN_MS: Final = 15 * 60_000
"""How long a customer has for 3-D Secure."""

AUTHORIZATION_MS: Final = 7 * 24 * 3_600_000
"""How long an authorisation can be captured, as with most cards at Stripe."""

REFUND_FAILS_AFTER_MS: Final = 1_000
DISPUTED_AFTER_MS: Final = 1_000

RENEWAL_DECLINES: Final = (False, True, True, False)
"""Which uses of `pm_card_decline_on_renewal` are declined. It repeats, so that the same books
serve for one rehearsal after another."""

ADVICE: Final[dict[str, str]] = {
    "do_not_honor": "try_again_later",
    "insufficient_funds": "try_again_later",
    "expired_card": "confirm_card_data",
    "authentication_failed": "confirm_card_data",
    "fraud_suspected": "do_not_try_again",
}
"""What to do about each decline, in Stripe's words (`advice_code`:
https://docs.stripe.com/declines/codes). What is not here can only be refused again."""

ADVICE_OTHERWISE: Final = "do_not_try_again"


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """How one payment method is treated. Times in milliseconds after the request."""

    name: str
    card: Card
    course: Course = "done"
    reply: ReplyKind = "news"
    code: str = ""
    """Why it is declined."""
    wait_ms: int = 0
    """The reply is held back for so long; the charge is not."""
    settles_after_ms: int = 0
    hidden_for_ms: int = 0
    """Look-ups do not find it for so long."""
    reply_amount_off: int = 0
    """By how much the reply (never the charge) overstates the amount, in minor units."""
    webhook: Webhook = "as_configured"
    refunds: Refunds = "succeed"
    disputed: bool = False
    declines_renewals: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is approved at once and nothing else ever happens."""
        return self == Method(name=self.name, card=self.card)


def _visa(last4: str, exp_year: int = 2034) -> Card:
    return Card(brand="visa", last4=last4, exp_month=12, exp_year=exp_year)


_ROWS: Final = (
    Method(name="pm_card_visa", card=_visa("4242")),
    Method(
        name="pm_card_mastercard",
        card=Card(brand="mastercard", last4="4444", exp_month=12, exp_year=2034),
    ),
    Method(name="pm_card_declined", card=_visa("0002"), course="declined", code="do_not_honor"),
    Method(
        name="pm_card_declined_insufficient_funds",
        card=_visa("9995"),
        course="declined",
        code="insufficient_funds",
    ),
    Method(
        name="pm_card_declined_expired",
        card=_visa("0069", exp_year=2020),
        course="declined",
        code="expired_card",
    ),
    Method(
        name="pm_card_declined_fraud",
        card=_visa("0019"),
        course="declined",
        code="fraud_suspected",
    ),
    Method(name="pm_card_3ds", card=_visa("3184"), course="open"),
    Method(name="pm_card_pending", card=_visa("7726"), course="pending", settles_after_ms=60_000),
    Method(name="pm_card_timeout_after_charge", card=_visa("5001"), reply="none"),
    Method(name="pm_card_5xx_after_charge", card=_visa("5002"), reply="server_error"),
    Method(name="pm_card_garbage_reply", card=_visa("5003"), reply="garbage"),
    Method(
        name="pm_card_timeout_before_charge", card=_visa("5004"), course="nothing", reply="none"
    ),
    Method(name="pm_card_unreachable", card=_visa("5005"), course="nothing", reply="unreachable"),
    Method(name="pm_card_settles_late", card=_visa("5006"), reply="none", hidden_for_ms=3_000),
    Method(name="pm_card_wrong_amount", card=_visa("5007"), reply_amount_off=1),
    Method(name="pm_card_slow", card=_visa("5008"), wait_ms=5_000),
    Method(name="pm_card_webhook_twice", card=_visa("5009"), webhook="twice"),
    Method(name="pm_card_webhook_early", card=_visa("5010"), webhook="early"),
    Method(
        name="pm_card_webhook_lost",
        card=_visa("5011"),
        course="pending",
        settles_after_ms=5_000,
        webhook="never",
    ),
    Method(name="pm_card_refund_fails", card=_visa("5012"), refunds="fail"),
    Method(name="pm_card_refund_fails_late", card=_visa("5013"), refunds="fail_late"),
    Method(name="pm_card_dispute", card=_visa("0259"), disputed=True),
    Method(name="pm_card_decline_on_renewal", card=_visa("0341"), declines_renewals=True),
)

_SHORT_NAMES: Final = {
    "pm_card_insufficient_funds": "pm_card_declined_insufficient_funds",
    "pm_card_expired": "pm_card_declined_expired",
    "pm_card_fraud": "pm_card_declined_fraud",
}
"""The contract writes these three with an ellipsis, which can be read both ways."""

METHODS: Final[dict[str, Method]] = {row.name: row for row in _ROWS}
METHODS.update(
    {
        short: msgspec.structs.replace(METHODS[name], name=short)
        for short, name in _SHORT_NAMES.items()
    }
)

PLAIN_CARDS: Final[dict[str, Card]] = {row.name: row.card for row in _ROWS if row.is_plain}
"""The cards of the methods that take no special path at all."""


def knows(method: str) -> bool:
    """Whether the simulator has this payment method. The engine refuses any other itself."""
    return method in METHODS


def card_of(method: str) -> Card | None:
    """What may be known of a method's card, or None for a method that is not there."""
    found = METHODS.get(method)
    return found.card if found is not None else None

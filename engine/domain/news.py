"""The vocabulary between the engine and a gateway: what is asked, and what may be heard.

Everything a gateway tells us, by reply, look-up or webhook, becomes one `News` value. There are
three kinds of outcome and only the explicit ones are definite: approved, refused (declined or
failed), and unknown. Anything that cannot be read with certainty is `Unknown`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Action = Literal["authorize", "purchase", "capture", "void", "refund"]


class Card(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What may be known of a card without knowing its number."""

    brand: str | None = None
    last4: str | None = None
    exp_month: int | None = None
    exp_year: int | None = None


class NextAction(msgspec.Struct, frozen=True, gc=False):
    """What the customer must do before the gateway goes on (3-D Secure: open `url`)."""

    type: str
    url: str


class GatewayCall(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One request to a gateway, or (`look_up`) the question what became of it.

    `key` is derived from the operation and never from the attempt, so a resend is safe. `target`
    is the gateway's reference of what a capture, void or refund acts on; `target_key` is the key
    of the operation that made it, for the case that its reference was never heard.
    """

    gateway: str
    op_id: str
    key: str
    action: Action
    amount: int
    currency: str
    payment_method: str
    livemode: bool
    look_up: bool = False
    final: bool = True
    target: str | None = None
    target_key: str | None = None
    reference: str | None = None
    request_id: str = ""


class GatewayTraits(msgspec.Struct, frozen=True):
    """What is different between providers, as numbers (times in milliseconds).

    `lookup_lag_ms`: how long after a call a look-up may still say "not found" of what was done.
    `resend_ms`: how long after its first use a key may be sent again. Later the provider may have
    forgotten it, and would take the same request for a new one.
    """

    name: str
    deadline_ms: int
    lookup_lag_ms: int
    multiple_capture: bool
    inflight_max: int
    authorization_ms: int
    resend_ms: int

    @property
    def settled_ms(self) -> int:
        """How long after a call "not found" is still no answer."""
        return self.deadline_ms + self.lookup_lag_ms


class Approved(msgspec.Struct, frozen=True, tag="approved", omit_defaults=True, gc=False):
    """Done, for exactly this amount. `expires_ms`: when an authorisation lapses."""

    amount: int
    currency: str
    reference: str
    expires_ms: int | None = None
    card: Card | None = None


class Declined(msgspec.Struct, frozen=True, tag="declined", omit_defaults=True, gc=False):
    """Refused by the issuer or the gateway's rules: definite, nothing was charged."""

    code: str
    advice: str
    reference: str | None = None
    card: Card | None = None


class ActionRequired(msgspec.Struct, frozen=True, tag="action_required", gc=False):
    """Waits for the customer, at the latest until `expires_ms`."""

    reference: str
    next_action: NextAction
    expires_ms: int
    card: Card | None = None


class StillPending(msgspec.Struct, frozen=True, tag="still_pending", omit_defaults=True, gc=False):
    """The gateway says "not yet" (or, to a look-up, "still open")."""

    reference: str | None = None
    card: Card | None = None


class Expired(msgspec.Struct, frozen=True, tag="expired", gc=False):
    """The gateway gave up waiting for the customer: nothing was charged."""


class Failed(msgspec.Struct, frozen=True, tag="failed", omit_defaults=True, gc=False):
    """Definitely not done, for a technical reason. `sent=False`: it never left the engine."""

    code: str
    sent: bool = True


TIMED_OUT = "timeout"
"""The reason of an `Unknown` whose call was cut off a deadline after it had left."""


class Unknown(msgspec.Struct, frozen=True, tag="unknown", gc=False):
    """It may or may not have been done: time-out, 5xx, unreadable or contradictory reply."""

    reason: str


class NotFound(msgspec.Struct, frozen=True, tag="not_found", gc=False):
    """A look-up found nothing. Definite only once the provider's look-up lag has passed.

    `asked_ms`: when it was asked (None: just now). Of what was seen later it says nothing.
    """

    asked_ms: int | None = None


class Disputed(msgspec.Struct, frozen=True, tag="disputed", gc=False):
    """A cardholder's dispute was opened against the payment."""

    dispute: str
    amount: int
    reason: str


class ReversedByGateway(msgspec.Struct, frozen=True, tag="reversed", gc=False):
    """The bank or the gateway took the whole payment back (an ACH return, for instance)."""

    amount: int
    reason: str


class RefundedElsewhere(msgspec.Struct, frozen=True, tag="refunded_elsewhere", gc=False):
    """A refund made in the gateway's own dashboard: a fact nobody here asked for."""

    amount: int
    currency: str
    reference: str


OperationNews = (
    Approved | Declined | ActionRequired | StillPending | Expired | Failed | Unknown | NotFound
)
"""News about one operation of ours."""

PaymentNews = Disputed | ReversedByGateway | RefundedElsewhere
"""News about a payment as a whole, which no operation of ours asked for."""

News = OperationNews | PaymentNews

NEWS_KIND: dict[type, str] = {
    Approved: "approved",
    Declined: "declined",
    ActionRequired: "action_required",
    StillPending: "pending",
    Expired: "declined",
    Failed: "failed_technical",
    Unknown: "unknown",
    NotFound: "not_found",
}
"""The name each answer of a gateway is counted under (breaker window, metrics)."""

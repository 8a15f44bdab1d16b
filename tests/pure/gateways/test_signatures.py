"""FAULTS row 31: forged, stale and mutated webhooks; old keys in rotation."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.gateways.signatures import secret_key, sign, signed_headers, verify
from engine.ports import WebhookRefused

# The vector of the Standard Webhooks libraries (their TestWebhookSign).
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP_S = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
OTHER_SIGNATURE = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc="

KEY = secret_key(SECRET)
OTHER_KEY = secret_key("whsec_" + base64.b64encode(b"another key").decode())
NOW_MS = TIMESTAMP_S * 1_000


def headers(**changes):
    values = {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": str(TIMESTAMP_S),
        "webhook-signature": SIGNATURE,
    }
    values.update({name.replace("_", "-"): value for name, value in changes.items()})
    return values


def code(result):
    return result.code if isinstance(result, WebhookRefused) else None


def test_the_published_vector_is_reproduced():
    assert sign(KEY, MESSAGE_ID, TIMESTAMP_S, BODY) == SIGNATURE
    assert verify([KEY], headers(), BODY, NOW_MS) == MESSAGE_ID


def test_one_of_several_signatures_is_enough():
    several = f"{OTHER_SIGNATURE} {SIGNATURE} {OTHER_SIGNATURE}"
    assert verify([KEY], headers(webhook_signature=several), BODY, NOW_MS) == MESSAGE_ID


def test_during_a_rotation_both_secrets_sign_and_either_verifies():
    both = signed_headers([KEY, OTHER_KEY], MESSAGE_ID, TIMESTAMP_S, BODY)
    assert verify([KEY], both, BODY, NOW_MS) == MESSAGE_ID
    assert verify([OTHER_KEY], both, BODY, NOW_MS) == MESSAGE_ID
    assert verify([OTHER_KEY, KEY], headers(), BODY, NOW_MS) == MESSAGE_ID


def test_a_retired_secret_no_longer_verifies():
    assert code(verify([OTHER_KEY], headers(), BODY, NOW_MS)) == "webhook_signature_invalid"
    assert code(verify([], headers(), BODY, NOW_MS)) == "webhook_signature_invalid"


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_refused(name):
    sent = headers()
    del sent[name]
    refused = verify([KEY], sent, BODY, NOW_MS)
    assert code(refused) == "webhook_signature_invalid"
    assert refused.detail == f"the header {name} is missing"


def test_header_names_may_come_in_any_case():
    sent = {name.title(): value for name, value in headers().items()}
    assert verify([KEY], sent, BODY, NOW_MS) == MESSAGE_ID


@pytest.mark.parametrize("away_s", [-300, 300])
def test_the_tolerance_holds_both_ways(away_s):
    assert verify([KEY], headers(), BODY, NOW_MS + away_s * 1_000) == MESSAGE_ID
    beyond_ms = NOW_MS + away_s * 1_000 + (1 if away_s > 0 else -1)
    assert code(verify([KEY], headers(), BODY, beyond_ms)) == "webhook_timestamp_stale"


def test_only_who_holds_the_secret_hears_stale():
    forged = headers(webhook_signature=OTHER_SIGNATURE)
    assert code(verify([KEY], forged, BODY, NOW_MS + 10**9)) == "webhook_signature_invalid"


@pytest.mark.parametrize("timestamp", ["soon", "1614265330.0", "-1", "9" * 13, "\u0661"])
def test_a_signed_time_stamp_that_is_none_is_malformed(timestamp):
    sent = headers(
        webhook_timestamp=timestamp,
        webhook_signature=sign(KEY, MESSAGE_ID, timestamp, BODY),
    )
    assert code(verify([KEY], sent, BODY, NOW_MS)) == "webhook_malformed"


@pytest.mark.parametrize(
    "signature",
    [
        SIGNATURE.replace("v1,", "v1a,"),
        SIGNATURE.removeprefix("v1,"),
        SIGNATURE.replace("v1,", "v0,"),
        SIGNATURE + "=",
        SIGNATURE[:-1],
        SIGNATURE.replace(",", ", "),
        "v1,",
        "\udcff",
        " ".join([OTHER_SIGNATURE] * 16 + [SIGNATURE]),
    ],
)
def test_other_spellings_and_schemes_are_refused(signature):
    sent = headers(webhook_signature=signature)
    assert code(verify([KEY], sent, BODY, NOW_MS)) == "webhook_signature_invalid"


@given(
    at=st.integers(0, len(BODY) - 1),
    flip=st.integers(1, 255),
)
def test_any_changed_byte_of_the_body_is_refused(at, flip):
    changed = bytearray(BODY)
    changed[at] ^= flip
    assert code(verify([KEY], headers(), bytes(changed), NOW_MS)) == "webhook_signature_invalid"


@given(
    name=st.sampled_from(["webhook_id", "webhook_timestamp", "webhook_signature"]),
    at=st.integers(0, 200),
    char=st.characters(exclude_categories=("Cs",)),
)
def test_any_changed_character_of_a_header_is_refused(name, at, char):
    value = headers()[name.replace("_", "-")]
    at %= len(value)
    changed = value[:at] + char + value[at + 1 :]
    if changed == value:
        return
    sent = headers(**{name: changed})
    assert isinstance(verify([KEY], sent, BODY, NOW_MS), WebhookRefused)


@given(extra=st.binary(min_size=1, max_size=8), in_front=st.booleans())
def test_added_bytes_are_refused(extra, in_front):
    changed = extra + BODY if in_front else BODY + extra
    assert code(verify([KEY], headers(), changed, NOW_MS)) == "webhook_signature_invalid"


@given(body=st.binary(max_size=200), now_s=st.integers(0, 4_000_000_000))
def test_what_is_signed_is_verified(body, now_s):
    sent = signed_headers([KEY], MESSAGE_ID, now_s, body)
    assert verify([KEY], sent, body, now_s * 1_000) == MESSAGE_ID


@pytest.mark.parametrize("secret", ["", "whsec_", "MfKQ9r8G", "whsec_*", "whsec_abc"])
def test_what_is_not_a_secret_is_refused_at_the_start(secret):
    with pytest.raises(ValueError, match="webhook secret"):
        secret_key(secret)

"""Cursors are taken back only as they were given out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.refusals import Refusal
from engine.http.cursors import CursorSeal
from engine.http.keys import ApiKey

SEAL = CursorSeal(b"0123456789abcdef")
ALICE = ApiKey("m_alice", False, frozenset())


@given(st.text(max_size=40))
def test_a_cursor_gives_its_position_back(position: str) -> None:
    position = position.encode("utf-8", "replace").decode()
    assert SEAL.take("/v1/payments", ALICE, SEAL.give("/v1/payments", ALICE, position)) == position


@pytest.mark.parametrize(
    ("name", "key", "seal"),
    [
        ("/v1/refunds", ALICE, SEAL),
        ("/v1/payments", ApiKey("m_bob", False, frozenset()), SEAL),
        ("/v1/payments", ApiKey("m_alice", True, frozenset()), SEAL),
        ("/v1/payments", ALICE, CursorSeal(b"another secret!!")),
    ],
)
def test_a_cursor_fits_only_its_list_merchant_and_mode(
    name: str, key: ApiKey, seal: CursorSeal
) -> None:
    refusal = seal.take(name, key, SEAL.give("/v1/payments", ALICE, "pay_1"))
    assert isinstance(refusal, Refusal)


@given(st.data())
def test_a_changed_cursor_is_refused(data: st.DataObject) -> None:
    cursor = SEAL.give("/v1/payments", ALICE, "pay_06dqdpn80m09xq7w3ntk2vzr")
    at = data.draw(st.integers(0, len(cursor) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda char: char != cursor[at]))
    refusal = SEAL.take("/v1/payments", ALICE, cursor[:at] + other + cursor[at + 1 :])
    # The last character of base 64 may hold bits that say nothing.
    if at < len(cursor) - 1:
        assert isinstance(refusal, Refusal)
        assert refusal.param == "cursor"


@given(st.text(max_size=300))
def test_any_text_is_refused_and_raises_nothing(text: str) -> None:
    assert isinstance(SEAL.take("/v1/payments", ALICE, text), Refusal)


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 65])
def test_a_secret_has_a_sensible_length(secret: bytes) -> None:
    with pytest.raises(ValueError, match="16 to 64 bytes"):
        CursorSeal(secret)

"""Messages between actors are plain data: frozen, told apart by a tag, nothing callable inside."""

from __future__ import annotations

from typing import get_args

import msgspec
import msgspec.inspect
import pytest

from engine import messages

STRUCTS = [
    found
    for found in vars(messages).values()
    if isinstance(found, type)
    and issubclass(found, msgspec.Struct)
    and found.__module__ == messages.__name__
]
MAILBOXES = [getattr(messages, name) for name in sorted(vars(messages)) if name.startswith("To")]


def test_there_are_messages() -> None:
    assert len(STRUCTS) > 10
    assert len(MAILBOXES) > 5


@pytest.mark.parametrize("message", STRUCTS, ids=lambda message: message.__name__)
def test_a_message_is_frozen_and_tagged(message: type[msgspec.Struct]) -> None:
    assert message.__struct_config__.frozen
    assert message.__struct_config__.tag is not None


@pytest.mark.parametrize("message", STRUCTS, ids=lambda message: message.__name__)
def test_a_message_holds_plain_data_only(message: type[msgspec.Struct]) -> None:
    seen: set[type] = set()
    todo: list[object] = [msgspec.inspect.type_info(message)]
    while todo:
        node = todo.pop()
        assert not isinstance(node, msgspec.inspect.CustomType | msgspec.inspect.AnyType), node
        if isinstance(node, msgspec.inspect.StructType):
            if node.cls in seen:
                continue
            seen.add(node.cls)
            assert node.cls.__struct_config__.frozen, f"{node.cls} could change on its way"
        for inner in _inside(node):
            todo.append(inner)


def _inside(node: object) -> list[object]:
    """The types a type is made of."""
    found: list[object] = []
    for name in ("fields", "types", "item_types"):
        found.extend(getattr(node, name, ()))
    for name in ("type", "item_type", "key_type", "value_type"):
        inner = getattr(node, name, None)
        if isinstance(inner, msgspec.inspect.Type):
            found.append(inner)
    return found


@pytest.mark.parametrize("mailbox", MAILBOXES, ids=str)
def test_what_a_mailbox_takes_can_be_written_down_and_read_back(mailbox: object) -> None:
    """A union that msgspec can decode is one whose members can be told apart."""
    msgspec.json.Decoder(mailbox)
    for message in get_args(mailbox) or (mailbox,):
        assert message in STRUCTS

"""What operators read of why a child ended."""

from engine.supervisor.child import describe


def test_one_exception():
    assert describe(ValueError("no such thing")) == "ValueError: no such thing"


def test_a_group_is_told_by_what_is_in_it_however_deep():
    inner = ExceptionGroup("inner", [KeyError("b"), ValueError("c")])
    assert describe(ExceptionGroup("outer", [OSError("a"), inner])) == (
        "OSError: a; KeyError: 'b'; ValueError: c"
    )


def test_many_are_counted():
    group = ExceptionGroup("outer", [ValueError(str(n)) for n in range(5)])
    assert describe(group) == "ValueError: 0; ValueError: 1; ValueError: 2; 2 more"

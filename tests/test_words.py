"""Words for messages."""

from kitsattn.words import name_some, plural, suggest


def test_few_are_named_of_many() -> None:
    """Three names, and dots if there are more."""
    assert name_some("abc") == "a, b, c"
    assert name_some("abcd") == "a, b, c, …"


def test_one_is_no_plural() -> None:
    """One case, no cases."""
    assert [plural(count, "case") for count in range(3)] == ["0 cases", "1 case", "2 cases"]


def test_a_slip_of_the_pen_is_recognised() -> None:
    """And what is like nothing is not."""
    assert suggest("epoch", ["epochs", "batch_size"]) == " (did you mean 'epochs'?)"
    assert suggest("colour", ["epochs", "batch_size"]) == ""

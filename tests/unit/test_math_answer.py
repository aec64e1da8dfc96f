"""Normal forms, values and shapes of answers; the format of replies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers._math_answer import misshapen, normalise, number, without_unit
from verifiers.reply import FormatError, extract_boxed, last_boxed


@given(st.text(alphabet="\\{}()[]$%,.=<>^_-+/ 0123456789abtextfrcpm", max_size=60))
def test_shape_rules_never_raise_and_normal_forms_are_stable(text: str) -> None:
    assert isinstance(misshapen(text, "3"), str)
    without_unit(text, bare=True)
    assert number(text) is None or number(normalise(text)) == number(text)


@given(st.integers(-(10**12), 10**12))
def test_an_integer_is_itself_however_it_is_written(value: int) -> None:
    assert number(str(value)) == number(f"{value:,}") == number(f"{value}.0") == value


@given(
    st.recursive(st.text("abc+ ", max_size=5), lambda inner: inner.map(lambda text: f"\\f{{{text}}}\\{{"), max_leaves=5)
)
def test_nested_and_escaped_braces_are_kept(inner: str) -> None:
    assert extract_boxed(f"</think> \\boxed{{{inner}}} end") == inner.strip()


def test_the_last_box_is_found() -> None:
    assert last_boxed("\\boxed{1} then \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    with pytest.raises(FormatError):
        last_boxed("none")

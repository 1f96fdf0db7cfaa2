"""Every expected failure, by walking the class tree: none can be added without passing these."""

from __future__ import annotations

import copy
import pickle
import string

import pytest

from memory_actor import errors
from memory_actor.errors import InvalidField, LarimarError, StartupError


def subclasses(of: type[LarimarError]) -> list[type[LarimarError]]:
    found = [of]
    for one in of.__subclasses__():
        found += subclasses(one)
    return found


# Those of this module: other layers may have classes of their own, loaded or not.
CLASSES = [one for one in subclasses(LarimarError) if one.__module__ == errors.__name__]


def made(kind: type[LarimarError]) -> LarimarError:
    return kind(*(f"<{name}>" for name in kind.fields))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind):
    """Type, values and text are the same after pickle (Ray sends errors so) and copy."""
    error = made(kind)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(other) is kind
        assert other.args == error.args
        assert str(other) == str(error)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_says_what_it_knows(kind):
    """Each value that the template names is in the text, and the template names no field that does not exist."""
    named = {name.split("!")[0] for _, name, _, _ in string.Formatter().parse(kind.template) if name}
    assert named <= set(kind.fields)
    text = str(made(kind))
    assert text.strip()
    assert all(f"<{name}>" in text for name in named)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_carries_what_a_reply_needs(kind):
    """A code, a title, an HTTP error status, whether to retry, and what happened to the request."""
    assert kind.code == kind.code.lower().replace(" ", "_")
    assert kind.title[0].isupper()
    assert 400 <= kind.http_status <= 599
    assert isinstance(kind.retryable, bool)
    assert kind.outcome in {"not_applied", "applied", "unknown"}
    if kind.outcome == "unknown":
        assert kind.retryable, "an unknown outcome is resolved by retrying with the same key"


def test_codes_are_unique():
    """A code names one class; only a class without code of its own shares its parent's."""
    own = [one.code for one in CLASSES if "code" in vars(one)]
    assert len(own) == len(set(own))
    heirs = [one for one in CLASSES if "code" not in vars(one)]
    assert all(issubclass(one, StartupError) for one in heirs), heirs


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_wrong_number_of_values_is_a_programming_error(kind):
    with pytest.raises(TypeError, match="takes"):
        kind(*([0] * (len(kind.fields) + 1)))


def test_values_are_never_read_as_templates():
    """Braces and percent signs in a caller's text come out as they went in."""
    assert "{0} %s {detail}" in str(LarimarError("{0} %s {detail}"))
    problems = [{"loc": ["body", "prompt"], "msg": "empty", "got": "''"}]
    assert pickle.loads(pickle.dumps(InvalidField("one field is wrong", problems))).args[1] == problems  # noqa: S301

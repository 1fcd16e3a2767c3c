"""Slices of arrays and texts, beside ctypes on memory of its own."""

import array
import ctypes
import threading

import pytest

import bunshin as mp
from bunshin import sharedctypes

INTEGERS = "bBhHiIlLqQ"
FLOATS = "fd"


class Odd(int):
    """An integer of a class of its own."""

    def __index__(self):
        raise AssertionError("nobody asks it")


class Near(float):
    def __float__(self):
        return 7.0


def outcome(array, key, values):
    """What the array is after the assignment, or the exception's class."""
    try:
        array[key] = values
    except Exception as error:
        return type(error)
    return array[:]


CASES = (
    [1, 2, 3, 4],
    (1, 2, 3, 4),
    [0, -1, 127, 128],
    [2**15, 2**16, 2**31, 2**32],
    [2**63 - 1, -(2**63), 2**63, 2**64 - 1],
    [2**64, 2**200, -(2**200), 0],
    [True, False, True, True],
    [Odd(5), 6, 7, 8],
    [1.5, 2, 3, 4],
    [1.5, 2.25, float("inf"), float("-inf")],
    [Near(1.0), 2.0, 3.0, 4.0],
    ["1", "2", "3", "4"],
    [None, 1, 2, 3],
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    [],
    (),
    "1234",
    b"1234",
    bytearray(b"1234"),
    range(4),
    {1, 2, 3, 4},
    5,
    None,
    array.array("i", [1, 2, 3, 4]),
    array.array("d", [1, 2, 3, 4]),
    [[1], 2, 3, 4],
    iter([1, 2, 3, 4]),
)


@pytest.mark.parametrize("letter", INTEGERS + FLOATS)
@pytest.mark.parametrize("at", range(len(CASES)))
def test_assignments_are_those_of_ctypes(letter, at):
    values = CASES[at]
    if isinstance(values, type(iter([]))):
        values = [iter([])]
    type_ = sharedctypes.typecode_to_type[letter]
    for key in (slice(None), slice(0, 4), slice(-4, None), slice(1, 3), slice(0, 4, 2), slice(0, 0)):
        ours, theirs = mp.Array(letter, [9] * 4), (type_ * 4)(*[9] * 4)
        expected = outcome(theirs, key, values)
        got = outcome(ours, key, values)
        if isinstance(got, list) and expected is not None and not isinstance(expected, list):
            # What lends memory of just this type may be copied as it is, and ctypes asks for more.
            assert isinstance(values, (array.array, bytes, bytearray))
            continue
        assert got == expected, (letter, key, values)
        assert ours.get_lock()._get_value() == 1


def test_a_failed_assignment_changes_nothing():
    ints = mp.Array("i", [1, 2, 3, 4])
    for values in (["a", 1, 1, 1], [9, 9, 9], [9, 9, 9, object()], [9, 9, 9.5, 9]):
        before = ints[:]
        with pytest.raises((TypeError, ValueError)):
            ints[:] = values
        if len(values) != 4:
            assert ints[:] == before
    assert len(ints) == 4


def test_long_ones_and_those_that_are_large():
    for letter in INTEGERS + FLOATS:
        many = list(range(100)) * 300
        whole = mp.Array(letter, len(many))
        whole[:] = many
        assert whole[:] == many
        whole[100:200] = tuple(range(100, 0, -1))
        assert whole[100:200] == list(range(100, 0, -1))
        assert whole[:100] == many[:100] and whole[200:] == many[200:]
    top = mp.Array("Q", [2**64 - 1] * 3)
    assert top[:] == [2**64 - 1] * 3


def test_a_list_that_changes_meanwhile_is_taken_as_it_was_or_refused():
    whole, values, ended = mp.Array("i", 1000), [1] * 1000, threading.Event()

    def change():
        while not ended.is_set():
            values.append(2)
            values.pop()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            try:
                whole[:] = values
            except ValueError:
                # One more than there is room for.
                pass
    finally:
        ended.set()
        thread.join(60)
    assert set(whole[:]) <= {0, 1}


# ---------------------------------------------------------------------------
# Text.

TEXTS = (
    b"",
    b"a",
    b"text",
    b"te\0xt",
    b"12345678",
    b"123456789",
    bytearray(b"abc"),
    memoryview(b"abc"),
    "text",
    5,
    None,
)


def text_after(text, name, value):
    try:
        setattr(text, name, value)
    except Exception as error:
        return type(error)
    return text.value, text.raw, text[:], text[2:5], text[1]


@pytest.mark.parametrize("at", range(len(TEXTS)))
@pytest.mark.parametrize("name", ["value", "raw"])
def test_texts_are_those_of_ctypes(at, name):
    ours, theirs = mp.Array("c", b"zyxwvuts"), (ctypes.c_char * 8)(*b"zyxwvuts")
    assert text_after(ours, name, TEXTS[at]) == text_after(theirs, name, TEXTS[at])
    assert ours.get_lock()._get_value() == 1
    with pytest.raises(AttributeError):
        delattr(ours, name)


def test_a_text_waits_for_its_lock():
    text = mp.Array("c", 8)
    text.value = b"before"
    seen = []
    thread = threading.Thread(target=lambda: seen.append(text.value))
    with text.get_lock():
        thread.start()
        thread.join(0.1)
        assert not seen
        text.value = b"after"
        assert text.value == b"after" and text.raw == b"after\0e\0"[:6] + text.raw[6:]
    thread.join(60)
    assert seen == [b"after"]


def test_a_text_with_a_lock_of_another_kind():
    text = mp.Array("c", 8, lock=threading.Lock())
    text.value = b"text"
    assert text.value == b"text" and text.raw == b"text\0\0\0\0"


def write_text(text, word):
    text.value = word


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_writes_a_text(method):
    context = mp.get_context(method)
    text = context.Array("c", 16)
    child = context.Process(target=write_text, args=(text, b"from afar"))
    child.start()
    child.join(60)
    assert child.exitcode == 0 and text.value == b"from afar"

"""Tasks that come to odd ends: results that can neither be sent nor shown, or for which there is no
memory, and initializers that give up."""

import resource
import sys

import bunshin as mp
import pytest

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("not to be shown")

    def __reduce__(self):
        raise RuntimeError("not to be sent")


def unspeakable():
    return Unspeakable()


def deep():
    made = []
    for _ in range(200_000):
        made = [made]
    return made


def same(value):
    return value


@pytest.mark.parametrize("task", [unspeakable, deep])
def test_what_can_be_neither_sent_nor_shown_is_an_error(context, task):
    with context.Pool(1) as pool:
        with pytest.raises(mp.pool.MaybeEncodingError, match="Unspeakable|list"):
            pool.apply_async(task).get(60)
        assert pool.apply_async(same, (4,)).get(60) == 4


def leave():
    sys.exit("no use")


def test_what_an_initializer_says_is_all_there_is_to_say(context):
    with context.Pool(1, leave) as pool, pytest.raises(mp.BrokenPool) as raised:
        pool.apply_async(same, (1,)).get(60)
    text = str(raised.value)
    assert text.endswith("SystemExit: no use")
    # Where in the engine it was told is nobody's matter.
    assert ".rs" not in text and "panic" not in text


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


def zeros(size):
    return bytes(size)


def test_a_result_without_memory_breaks_nothing(context):
    with context.Pool(1, limit) as pool:
        with pytest.raises(MemoryError):
            pool.apply_async(zeros, (1500 << 20,)).get(60)
        assert pool.apply_async(same, (5,)).get(60) == 5


def test_an_executor_goes_on_after_a_result_without_memory(context):
    with mp.ProcessPoolExecutor(1, mp_context=context, initializer=limit) as executor:
        with pytest.raises(MemoryError):
            executor.submit(zeros, 1500 << 20).result(60)
        assert executor.submit(same, 6).result(60) == 6

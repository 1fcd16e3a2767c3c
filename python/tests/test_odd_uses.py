"""What differs from `multiprocessing` only where somebody looks closely: each beside its own."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.managers

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def who():
    return mp.parent_process().name, mp.parent_process().pid, mp.current_process().daemon


def theirs():
    parent = multiprocessing.parent_process()
    return parent.name, parent.pid, multiprocessing.current_process().daemon


def test_the_parent_of_a_worker(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        expected = pool.apply(theirs)
    with mp.get_context(method).Pool(1) as pool:
        assert pool.apply(who) == expected


def outcome(call, package):
    try:
        call(package)
    except Exception as error:
        return type(error)
    return "no exception"


@pytest.mark.parametrize(
    "call",
    (
        lambda mp: mp.connection.Listener("there", "AF_NOWHERE"),
        lambda mp: mp.connection.Listener(("localhost", 0), "nothing"),
        lambda mp: mp.connection.Listener(family="AF_NOWHERE"),
        lambda mp: mp.connection.Listener(5),
        lambda mp: mp.connection.Listener(b"there"),
        lambda mp: mp.connection.Listener(r"\\.\there"),
        lambda mp: mp.connection.Client(None),
        lambda mp: mp.connection.Client(5),
        lambda mp: mp.connection.Client(b"there"),
        lambda mp: mp.connection.Client("/there/is/none"),
        lambda mp: mp.managers.BaseManager(serializer="paper"),
        lambda mp: mp.Semaphore(2**31),
        lambda mp: mp.Semaphore(2**31 - 1),
        lambda mp: mp.Semaphore(-1),
        lambda mp: mp.BoundedSemaphore(-(2**40)),
        lambda mp: mp.Semaphore("one"),
    ),
)
def test_exceptions(call):
    assert outcome(call, mp) == outcome(call, multiprocessing)


def test_the_value_of_a_semaphore():
    for made in (mp.Semaphore(3), mp.BoundedSemaphore(3)):
        assert made.get_value() == 3
        with made:
            assert made.get_value() == 2
    assert not hasattr(mp.Lock(), "get_value")

"""Arrays arrive writable, also those that are read-only where they come from."""

import os
import pickle

import pytest

import bunshin as mp

numpy = pytest.importorskip("numpy", reason="numpy is not installed")

METHODS = ("fork", "spawn", "forkserver")
PATIENCE = 60


class Named(numpy.ndarray):
    """A subclass with something of its own."""

    def __array_finalize__(self, other):
        self.name = getattr(other, "name", None)

    def __reduce_ex__(self, protocol):
        return restored, (super().__reduce_ex__(protocol), getattr(self, "name", None))


def restored(reduction, name):
    made = reduction[0](*reduction[1])
    if len(reduction) > 2:
        made.__setstate__(reduction[2])
    made = made.view(Named)
    made.name = name
    return made


class Grid:
    """What has a buffer of its own, as other packages' arrays do."""

    def __init__(self, memory):
        self.memory = memory

    def __reduce_ex__(self, protocol):
        return Grid, (pickle.PickleBuffer(self.memory),)


def read_only(array):
    array.flags.writeable = False
    return array


def named(array):
    made = array.view(Named)
    made.name = "kept"
    return made


RECORD = [("number", "i4"), ("weight", "f8"), ("name", "S5")]
ARRAYS = {
    "tiny": lambda: numpy.arange(3),
    "small": lambda: numpy.arange(500.0),
    "the longest within a pickle": lambda: numpy.arange(4096, dtype="u1"),
    "the shortest beside it": lambda: numpy.arange(4097, dtype="i2").view("u1")[:4097],
    "large": lambda: numpy.arange(300_000),
    "empty": lambda: numpy.zeros((0, 3)),
    "no dimensions": lambda: numpy.array(2.5),
    "fortran": lambda: numpy.asfortranarray(numpy.arange(20_000.0).reshape(100, 200)),
    "transposed": lambda: numpy.arange(20_000.0).reshape(100, 200).T,
    "structured": lambda: numpy.array([(1, 0.5, b"one"), (2, 1.5, b"two")] * 800, RECORD),
    "texts": lambda: numpy.array(["a", "bc", "def"] * 900),
    "booleans": lambda: numpy.arange(9000) % 3 == 0,
    "times": lambda: numpy.arange("2024-01", "2025-01", dtype="M8[D]"),
    "other byte order": lambda: numpy.arange(900, dtype=">i8"),
    "objects": lambda: numpy.array([{"a": 1}, [2], "three"], object),
    "a view": lambda: numpy.arange(100_000)[5000:9000],
    "a view with gaps": lambda: numpy.arange(100_000).reshape(100, 1000)[::2, 3:700:5],
    "backwards": lambda: numpy.arange(5000)[::-1],
    "of bytes": lambda: numpy.frombuffer(bytes(range(256)) * 80, "u1"),
    "broadcast": lambda: numpy.broadcast_to(numpy.arange(50.0), (40, 50)),
    "a number broadcast": lambda: numpy.broadcast_to(7, (30, 300)),
    "masked": lambda: numpy.ma.masked_array(numpy.arange(3000), numpy.arange(3000) % 2),
    "a subclass": lambda: named(numpy.arange(3000.0)),
}


def made(name):
    return read_only(ARRAYS[name]())


def changed(array):
    """Changes an argument, as a worker may."""
    assert array.flags.writeable
    before = array.copy()
    array[...] = array.flat[0] if array.size else 0
    return before, array


@pytest.fixture(scope="module", params=METHODS)
def context(request):
    return mp.get_context(request.param)


@pytest.fixture(scope="module")
def pool(context):
    with context.Pool(1) as pool:
        yield pool


def same(one, other):
    assert type(one) is type(other)
    assert one.dtype == other.dtype and one.shape == other.shape
    assert one.tolist() == other.tolist()
    assert getattr(one, "name", None) == getattr(other, "name", None)


@pytest.mark.parametrize("name", ARRAYS)
def test_through_pipes_and_queues(name):
    array = made(name)
    assert not array.flags.writeable
    one, other = mp.Pipe()
    queues = [mp.Queue(), mp.SimpleQueue(), mp.JoinableQueue()]
    with one, other:
        ways = [(one.send, other.recv)] + [(queue.put, queue.get) for queue in queues]
        for send, recv in ways:
            send({"first": array, "again": [array, b"in between", array.copy()]})
            got = recv()
            same(got["first"], array)
            assert got["again"][0] is got["first"] and got["again"][1] == b"in between"
            before, after = changed(got["first"])
            same(before, array)
            # It is no view of anything that another one is.
            send(array)
            again = recv()
            same(again, array)
            assert again.flags.writeable
    assert not array.flags.writeable
    same(array, made(name))


@pytest.mark.parametrize("name", ARRAYS)
def test_arguments_and_results(pool, name):
    array = made(name)
    before, after = pool.apply(changed, (array,))
    same(before, array)
    assert before.flags.writeable and after.flags.writeable
    assert [got.flags.writeable for got in pool.map(made, [name] * 3)] == [True] * 3


def test_arguments_of_a_process(context):
    one, other = context.Pipe()
    child = context.Process(target=send_changed, args=(one, made("large"), made("tiny")))
    child.start()
    assert other.poll(PATIENCE)
    large, tiny = other.recv()
    same(large, numpy.zeros_like(made("large")))
    same(tiny, numpy.zeros_like(made("tiny")))
    child.join(PATIENCE)
    assert child.exitcode == 0


def send_changed(connection, *arrays):
    # Under fork they are the parent's own.
    if all(array.flags.writeable for array in arrays):
        for array in arrays:
            array[...] = 0
    else:
        arrays = [numpy.zeros_like(array) for array in arrays]
    connection.send(arrays)


def test_through_managers(context):
    with context.Manager() as manager:
        kept = manager.dict()
        for name in ARRAYS:
            kept[name] = made(name)
        for name in ARRAYS:
            got = kept[name]
            same(got, made(name))
            assert got.flags.writeable


def test_many_in_one_message(pool):
    """Among them some that are writable, small ones and large ones, and what looks like marks."""
    parts = []
    for size in (1, 40, 511, 512, 513, 9000, 100_000):
        parts += [numpy.arange(size), read_only(numpy.arange(size)), b"\x97\x98\x95" * size]
        parts += [bytearray(b"\x97\x98") * 9, "\u0097\u0098" * size, size**90, [size] * 300, 0.5]
        parts += [{size: (size, None, True)}, frozenset([size]), {size}, print, os.getpid, -size]
    parts += [parts[1], parts[1].T]
    for _ in range(3):
        got = pool.apply(list, (parts,))
        assert len(got) == len(parts)
        for one, other in zip(got, parts):
            if isinstance(other, numpy.ndarray):
                same(one, other)
                assert one.flags.writeable
            else:
                assert one == other and type(one) is type(other)
        assert got[-2] is got[1]


def test_by_value():
    """So does what pickle cannot name."""
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    large, tiny = made("large"), made("tiny")
    one, other = mp.Pipe()
    with one, other:
        one.send((lambda: None, large, tiny))
        _, got_large, got_tiny = other.recv()
    same(got_large, large)
    same(got_tiny, tiny)
    assert got_large.flags.writeable and got_tiny.flags.writeable


@pytest.mark.parametrize("size", (3, 9000))
def test_other_objects_with_buffers(size):
    one, other = mp.Pipe()
    with one, other:
        one.send(Grid(memoryview(bytearray(size)).toreadonly()))
        got = memoryview(other.recv().memory)
        assert not got.readonly and got == bytes(size)
        # Bytes are bytes.
        for memory in (bytes(size), memoryview(bytes(size)), memoryview(bytes(size))[1:]):
            one.send(Grid(memory))
            got = memoryview(other.recv().memory)
            assert got.readonly and got == memory


def test_of_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"a": range(3000), "b": [0.5] * 3000, "c": ["x", "yz", ""] * 1000})
    frozen = frame["a"].to_numpy()
    with mp.get_context("fork").Pool(1) as pool:
        for sent in (frame, frame[10:20], frame.T, frame["a"], frame.index, frame["b"][::3]):
            got = pool.apply(same_again, (sent,))
            assert got.equals(sent)
        got = pool.apply(doubled, (frame[10:2000],))
        assert got["a"].tolist() == [2 * number for number in range(10, 2000)]
        got = pool.apply(same_again, (frozen,))
        assert got.flags.writeable and got.tolist() == frozen.tolist()


def same_again(value):
    return value


def doubled(frame):
    frame.loc[:, "a"] *= 2
    return frame

"""Pools of subclasses whose queues have reducers of their own, as joblib's do."""

import functools
import mmap
import os
import subprocess
import sys

import pytest

import bunshin as mp
from bunshin.pool import Pool, WorkerLost

METHODS = ("fork", "spawn", "forkserver")


class Mapped:
    """Numbers that lie in a file where they were sent with a reducer, and are copied otherwise."""

    def __init__(self, path):
        self.path = path
        self.how = "copied"
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 8)

    def __getstate__(self):
        return {"path": self.path, "how": "copied", "memory": bytearray(self.memory[:])}


def mapped(path, how):
    again = Mapped(path)
    again.how = how
    return again


class Forward:
    """A reducer with a state, which cannot be pickled itself."""

    def __init__(self):
        self.count = 0

    def __call__(self, numbers):
        self.count += 1
        return mapped, (numbers.path, "forward")

    def __reduce__(self):
        raise TypeError("it belongs to the sender")


def backward(numbers):
    return mapped, (numbers.path, f"{numbers.how}, backward")


def refuse(numbers):
    raise ValueError("no way back")


class Queue:
    def __init__(self, reducers):
        self._reducers = reducers


class PicklingPool(Pool):
    def __init__(self, forward, backward, *args, **kwds):
        self._ways = forward, backward
        super().__init__(*args, **kwds)

    def _setup_queues(self):
        self._inqueue, self._outqueue = map(Queue, self._ways)


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


@pytest.fixture
def numbers(tmp_path):
    path = str(tmp_path / "numbers")
    with open(path, "wb") as file:
        file.write(bytes(8))
    return Mapped(path)


def fill(numbers, at, value=1):
    numbers.memory[at] = value
    return numbers


def fill_pair(pair):
    return fill(*pair)


def fail(numbers):
    raise KeyError(numbers.how)


def leave(numbers):
    os._exit(7)


class Filler:
    """A function that has what it needs in itself."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __call__(self):
        return fill(self.numbers, 7)


def test_arguments_and_results_go_by_the_reducers(context, numbers):
    reducer = Forward()
    both = "forward, backward"
    with PicklingPool({Mapped: reducer}, {Mapped: backward}, 2, context=context) as pool:
        assert pool.apply(fill, (numbers, 0)).how == both
        assert pool.apply(fill, (), {"numbers": numbers, "at": 1}).how == both
        assert pool.apply_async(fill, (numbers,), {"at": 2}).get(30).how == both
        assert pool.apply_async(Filler(numbers)).get(30).how == both
        assert pool.apply_async(functools.partial(fill, numbers), (2,)).get(30).how == both
        assert [n.how for n in pool.map(fill_pair, [(numbers, 3), (numbers, 3)])] == [both] * 2
        assert [n.how for n in pool.starmap(fill, [(numbers, 4, 2)])] == [both]
        assert [n.how for n in pool.imap(fill_pair, iter([(numbers, 5)]))] == [both]
        assert [n.how for n in pool.imap_unordered(fill_pair, [(numbers, 6)] * 3, 2)] == [both] * 3
        assert [n.how for n in pool.map_async(fill_pair, [(numbers, 5)]).get(30)] == [both]
        told = []
        pool.apply_async(fill, (numbers, 0), callback=told.append).wait(30)
        assert [n.how for n in told] == [both]
    # What the workers have written is there: it was not in copies.
    assert numbers.memory[:] == bytes([1, 1, 1, 1, 2, 1, 1, 1])
    assert reducer.count >= 11


def test_one_way_alone(context, numbers):
    with PicklingPool({Mapped: Forward()}, None, 1, context=context) as pool:
        assert pool.apply(fill, (numbers, 0)).how == "copied"
        assert pool.apply(str.upper, ("a",)) == "A"
    with PicklingPool(None, {Mapped: backward}, 1, context=context) as pool:
        assert pool.apply(fill, (numbers, 1)).how == "copied, backward"
    assert numbers.memory[:2] == bytes([1, 0])


def test_errors_reach_the_caller(context, numbers):
    with PicklingPool({Mapped: Forward()}, {Mapped: refuse}, 1, context=context) as pool:
        with pytest.raises(KeyError, match="forward"):
            pool.apply(fail, (numbers,))
        with pytest.raises(mp.pool.MaybeEncodingError, match="no way back"):
            pool.apply(fill, (numbers, 0))
        with pytest.raises(WorkerLost):
            pool.apply(leave, (numbers,))
        assert pool.map(len, ["a", "bc"]) == [1, 2]
    with PicklingPool({Mapped: refuse}, None, 1, context=context) as pool:
        with pytest.raises(ValueError, match="no way back"):
            pool.apply(fill, (numbers, 0))
        with pytest.raises(ValueError, match="no way back"):
            pool.map(fill_pair, [(numbers, 0)])
        assert pool.apply(len, ("abc",)) == 3


def test_what_needs_more_than_bytes_goes_along(context, numbers):
    lock = context.Lock()
    with PicklingPool({Mapped: Forward()}, {Mapped: backward}, 1, context=context) as pool:
        here, there = context.Pipe()
        pool.apply(send_through, (there, numbers))
        assert here.recv() == "forward"
        if context.get_start_method() != "fork":
            with pytest.raises(RuntimeError):
                pool.apply(send_through, (lock, numbers))


def send_through(connection, numbers):
    connection.send(numbers.how)


JOBLIB = """
import sys
import numpy
from joblib import Parallel, delayed

def sum_row(data, sums, at):
    sums[at] = data[at].sum()
    return type(data).__name__, type(sums).__name__, data.flags.writeable

if __name__ == "__main__":
    import multiprocessing
    multiprocessing.set_start_method(sys.argv[2])
    data = numpy.arange(4000.0).reshape(40, 100)
    sums = numpy.memmap(sys.argv[1], dtype="d", shape=40, mode="w+")
    run = Parallel(n_jobs=2, backend="multiprocessing", max_nbytes=1000)
    print(set(run(delayed(sum_row)(data, sums, at) for at in range(40))))
    print(numpy.array_equal(sums, data.sum(axis=1)))
"""


@pytest.mark.parametrize("method", METHODS)
def test_jobs_of_joblib_write_to_the_files_that_they_are_given(tmp_path, method):
    pytest.importorskip("numpy")
    pytest.importorskip("joblib")
    program = tmp_path / "program.py"
    program.write_text(JOBLIB)
    told = [
        subprocess.run(
            [sys.executable, *way, str(program), str(tmp_path / "sums"), method],
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
            capture_output=True,
            text=True,
            timeout=60,
        )
        for way in ((), ("-m", "bunshin"))
    ]
    assert told[0].stdout == told[1].stdout, told[1].stderr
    assert told[1].stdout == "{('memmap', 'memmap', False)}\nTrue\n"

"""How the items of a map are shared out, and what a worker has printed by when."""

import functools
import math
import os
import subprocess
import sys
import textwrap
import time

import bunshin
import pytest

METHODS = ["fork", "spawn", "forkserver"]


def pid(number):
    return number, os.getpid()


def nap(seconds):
    time.sleep(seconds)
    return seconds


def add(one, other):
    return one + other


class Pair:
    """Can be unpacked, and is no tuple."""

    def __init__(self, *parts):
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)


def failing(number):
    if number % 3 == 1:
        raise ValueError(number)
    return number


@pytest.fixture(params=METHODS)
def context(request):
    return bunshin.get_context(request.param)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_items_keep_their_order_however_they_are_shared_out(count):
    with bunshin.get_context("fork").Pool(2) as pool:
        for chunksize in (None, 0, 1, 3, 10_000):
            expected = list(range(count))
            assert [n for n, _ in pool.map(pid, range(count), chunksize)] == expected
            assert [n for n, _ in pool.map_async(pid, range(count), chunksize).get(30)] == expected


def keep(barrier):
    global meeting
    meeting = barrier


def meet(number):
    # In one task they would wait for each other for ever.
    if number >= 62:
        meeting.wait(30)
    return number


def test_the_last_items_are_shared_out_one_by_one(context):
    with context.Pool(2, keep, (context.Barrier(2),)) as pool:
        assert pool.map(meet, range(64)) == list(range(64))
        assert pool.map_async(meet, range(64)).get(30) == list(range(64))


def test_arguments_are_unpacked_whatever_they_are(context):
    with context.Pool(2) as pool:
        pairs = [(1, 2), [3, 4], Pair(5, 6), "ab"]
        for chunksize in (None, 1, 2):
            assert pool.starmap(add, pairs, chunksize) == [3, 7, 11, "ab"]
        with pytest.raises(TypeError):
            pool.starmap(add, [(1, 2), 3], 1)
        assert pool.apply(add, [1, 2]) == pool.apply(add, (1,), {"other": 2}) == 3
        assert pool.apply_async(add, kwds={"one": 1, "other": 2}).get(30) == 3


def test_results_of_an_imap_go_on_after_those_that_raise(context):
    with context.Pool(2) as pool:
        for chunksize in (1, 2):
            results = pool.imap(failing, range(7), chunksize)
            seen = []
            while True:
                try:
                    seen.append(next(results))
                except ValueError as error:
                    seen.append(-error.args[0])
                except StopIteration:
                    break
            assert seen == ([0, -1, 2, 3, -4, 5, 6] if chunksize == 1 else [-1, 2, 3, -4, 6])


def test_a_result_may_be_asked_for_again_and_by_several(context):
    import threading

    with context.Pool(2) as pool:
        result = pool.apply_async(nap, (0.2,))
        with pytest.raises(bunshin.TimeoutError):
            result.get(0)
        got = []
        threads = [threading.Thread(target=lambda: got.append(result.get(30))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert got == [0.2] * 4 and result.get() == 0.2 and result.successful()


@pytest.mark.parametrize("method", METHODS)
def test_what_idle_workers_have_printed_is_out_when_they_are_killed(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, time
            import bunshin

            def say(number):
                sys.stdout.write(f"<{number}>")
                return os.getpid()

            if __name__ == "__main__":
                pool = bunshin.get_context(sys.argv[1]).Pool(1)
                for number in range(50):
                    worker = pool.apply(say, (number,))
                # It goes to sleep.
                time.sleep(0.5)
                os.kill(worker, signal.SIGKILL)
                pool.terminate()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(program), method], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"<{number}>" for number in range(50))


def test_a_start_method_of_somebody_else_is_no_obstacle():
    program = """
import multiprocessing.context as own

class Other(own.BaseContext):
    _name = "other"

own._default_context._actual_context = Other()
import bunshin
assert bunshin.get_start_method() == "spawn"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


class Counter:
    """Counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, _):
        self.calls += 1
        return self.calls

    def count(self, _):
        return self(_)


def test_each_task_has_an_object_of_its_own(context):
    counter = Counter()
    with context.Pool(2) as pool:
        for function in (counter, counter.count, functools.partial(Counter.count, counter)):
            for _ in range(2):
                assert pool.map(function, range(8), 1) == [1] * 8
            assert pool.map(function, range(8), 4) == [1, 2, 3, 4] * 2
            assert list(pool.imap(function, range(8))) == [1] * 8
            assert pool.apply(function, (0,)) == 1
        # Those without a state are as before.
        assert pool.map(math.sqrt, [4.0, 9.0], 1) == [2, 3]
        assert pool.map(Pair, (), 1) == []
        assert pool.map(int, "12", 1) == [1, 2]
    assert counter.calls == 0

"""Pools beyond what `test_package.py` asks of them, under each start method."""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import bunshin as mp
from bunshin.pool import MaybeEncodingError, ThreadPool

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def square(number):
    return number * number


def name(_number):
    return mp.current_process().name


def refuse(number):
    raise ValueError(number)


def nap(seconds):
    time.sleep(seconds)
    return seconds


def pid(_number):
    return os.getpid()


def leave(code):
    os._exit(code)


def give_lock():
    return threading.Lock()


def raise_lock():
    raise ValueError(threading.Lock())


def tricky():
    class Tricky(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    raise Tricky(1, 2)


def one_of_our_own_classes():
    class Own:
        value = 5

    return Own()


class Counted:
    """Counts how often it is pickled."""

    count = 0

    def __call__(self, number):
        return number + 1

    def __reduce__(self):
        Counted.count += 1
        return Counted, ()


def test_all_forms_agree(context):
    numbers = list(range(20))
    squares = [square(number) for number in numbers]
    pairs = [(number, 2) for number in numbers]
    with context.Pool(2) as pool:
        assert pool.apply(square, (4,)) == 16
        assert pool.apply(divmod, (7, 2)) == (3, 1)
        assert pool.apply(int, ("11",), {"base": 2}) == 3
        for size in (None, 1, 3, 50):
            assert pool.map(square, numbers, size) == squares
            assert pool.starmap(pow, pairs, size) == squares
            assert pool.map_async(square, numbers, size).get(20) == squares
            assert pool.starmap_async(pow, pairs, size).get(20) == squares
        for size in (1, 7):
            assert list(pool.imap(square, iter(numbers), size)) == squares
            assert sorted(pool.imap_unordered(square, numbers, size)) == squares
        assert pool.map(square, []) == [] and list(pool.imap(square, [])) == []


def test_a_handle_says_whether_it_is_ready(context):
    with context.Pool(1) as pool:
        handle = pool.apply_async(nap, (0.5,))
        assert not handle.ready()
        with pytest.raises(ValueError):
            handle.successful()
        with pytest.raises(mp.TimeoutError):
            handle.get(0.01)
        handle.wait(20)
        assert handle.ready() and handle.successful() and handle.get() == 0.5
        assert handle.get(0) == 0.5
        failing = pool.apply_async(refuse, (1,))
        failing.wait(20)
        assert not failing.successful()
        for _ in range(2):
            with pytest.raises(ValueError):
                failing.get()


def test_callbacks_of_maps_are_called_once(context):
    done, failed = [], []
    with context.Pool(2) as pool:
        pool.map_async(square, range(5), callback=done.append).wait(20)
        pool.starmap_async(pow, [(2, 2)], callback=done.append).wait(20)
        pool.map_async(refuse, [3], error_callback=failed.append).wait(20)
    assert done == [[0, 1, 4, 9, 16], [4]]
    assert [error.args for error in failed] == [(3,)]


def test_what_cannot_be_pickled_is_an_error(context):
    with context.Pool(1) as pool:
        with pytest.raises(TypeError):
            pool.apply(square, (threading.Lock(),))
        for call in (give_lock, raise_lock):
            with pytest.raises(MaybeEncodingError):
                pool.apply(call)
        with pytest.raises((MaybeEncodingError, Exception)) as raised:
            pool.apply(tricky)
        assert "Tricky" in str(raised.value) or "Tricky" in type(raised.value).__name__
        assert pool.apply(square, (3,)) == 9


def test_functions_without_a_name_run_too(context):
    offset = 10
    with context.Pool(2) as pool:
        assert pool.map(lambda number: number + offset, range(3)) == [10, 11, 12]
        assert pool.apply(lambda: one_of_our_own_classes().value) == 5
        # What a lambda gives may have no name either.
        assert pool.apply(lambda: (lambda: 3))() == 3


def test_a_function_is_pickled_once_for_a_map(context):
    with context.Pool(2) as pool:
        before = Counted.count
        assert pool.map(Counted(), range(40), chunksize=1) == list(range(1, 41))
        assert Counted.count == before + 1


def test_workers_are_replaced_after_so_many_tasks(context):
    with context.Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(pid, (number,)) for number in range(6)]
    assert len(set(pids)) == 3 and os.getpid() not in pids


def test_a_closed_pool_takes_no_tasks_and_does_those_it_has(context):
    pool = context.Pool(2)
    with pytest.raises(ValueError):
        pool.join()
    handle = pool.map_async(nap, [0.05] * 6, 1)
    pool.close()
    with pytest.raises(ValueError):
        pool.apply(square, (1,))
    pool.join()
    assert handle.get(0) == [0.05] * 6
    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_terminate_does_not_wait(context):
    pool = context.Pool(2)
    handle = pool.map_async(nap, [600] * 1000, 1)
    start = time.monotonic()
    pool.terminate()
    pool.join()
    assert time.monotonic() - start < 30
    with pytest.raises(mp.ProcessError):
        handle.get(20)


def test_a_lost_worker_says_how_it_ended(context):
    with context.Pool(1) as pool:
        with pytest.raises(mp.WorkerLost) as raised:
            pool.apply(leave, (7,))
        assert raised.value.exitcode == 7 and raised.value.pid
        assert not raised.value.out_of_memory
        copy = pickle.loads(pickle.dumps(raised.value))
        assert (copy.pid, copy.exitcode) == (raised.value.pid, 7)
        assert pool.apply(square, (2,)) == 4


def test_workers_killed_at_random_cost_their_own_tasks_only(context):
    chance = random.Random(context.get_start_method())
    with context.Pool(3) as pool:
        for _ in range(4):
            handles = [pool.apply_async(nap, (0.01,)) for _ in range(60)]
            for _ in range(3):
                time.sleep(chance.uniform(0, 0.05))
                workers = pool._native.worker_pids()
                if workers:
                    try:
                        os.kill(chance.choice(workers), signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            lost = 0
            for handle in handles:
                try:
                    assert handle.get(60) == 0.01
                except mp.WorkerLost as error:
                    assert error.exitcode == -signal.SIGKILL
                    lost += 1
            assert lost <= 3
        assert pool.map(square, range(50)) == [number * number for number in range(50)]


def test_a_map_that_fails_keeps_nothing_of_the_pool(context):
    with pytest.raises(ValueError):
        with context.Pool(2) as pool:
            try:
                pool.map(refuse, [0, 1])
            finally:
                pool.close()
                pool.join()


@pytest.mark.parametrize("count", [5, 5000])
def test_an_imap_is_done_when_its_pool_is_joined(context, count):
    pool = context.Pool(2)
    results = pool.imap(square, range(count))
    others = pool.imap_unordered(square, range(count), chunksize=7)
    assert next(results) == 0
    pool.close()
    pool.join()
    assert list(results) == [number * number for number in range(1, count)]
    assert sorted(others) == [number * number for number in range(count)]
    assert list(others) == []


def test_an_imap_that_nobody_reads_is_done_too(context, tmp_path):
    pool = context.Pool(2)
    pool.imap_unordered(os.mkdir, [str(tmp_path / str(number)) for number in range(30)])
    pool.close()
    pool.join()
    assert len(list(tmp_path.iterdir())) == 30


def test_calls_whose_handles_nobody_keeps_are_done_too(context, tmp_path):
    pool = context.Pool(2)
    for number in range(20):
        pool.apply_async(os.mkdir, (str(tmp_path / str(number)),))
    pool.map_async(os.mkdir, [str(tmp_path / str(number)) for number in range(20, 40)], 1)
    pool.close()
    pool.join()
    assert len(list(tmp_path.iterdir())) == 40


def test_an_imap_ends_with_its_terminated_pool(context):
    pool = context.Pool(2)
    results = pool.imap(nap, [600] * 50)
    with pytest.raises(mp.TimeoutError):
        results.next(0.05)
    pool.terminate()
    pool.join()
    with pytest.raises(mp.ProcessError):
        next(results)


HUNG = """
import sys, time
import bunshin as mp

def hang():
    time.sleep(600)

if __name__ == "__main__":
    pool = mp.get_context(sys.argv[1]).Pool(2, hang)
    handle = pool.apply_async(abs, (1,))
    handle.wait(0.5)
    print(handle.ready(), flush=True)
    pool.terminate()
    pool.join()
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_hung_initializer_can_be_terminated(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(HUNG)
    ran = subprocess.run(
        [sys.executable, str(program), method],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr


def test_a_pool_of_threads_is_terminated_without_its_calls():
    pool = ThreadPool(2)
    assert pool.map(square, range(4)) == [0, 1, 4, 9]
    pool.map_async(time.sleep, [5] * 4, 1)
    time.sleep(0.1)
    start = time.monotonic()
    pool.terminate()
    pool.join()
    assert time.monotonic() - start < 4


def test_arguments_are_checked(context):
    for count in (0, -1):
        with pytest.raises(ValueError):
            context.Pool(count)
    with pytest.raises(TypeError):
        context.Pool(1, initializer=3)
    for tasks in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError):
            context.Pool(1, maxtasksperchild=tasks)
    with context.Pool(1) as pool, pytest.raises(ValueError):
        pool.imap(square, [1], chunksize=0)


def test_a_worker_that_takes_the_place_of_another_has_its_name(context):
    with context.Pool(1, maxtasksperchild=1) as pool:
        names = pool.map(name, range(3), chunksize=1)
        assert len(set(names)) == 1 and names[0].split("PoolWorker-")[1].isdigit()
        pids = pool.map(pid, range(3), chunksize=1)
        assert len(set(pids)) == 3
        assert pool._pool[0].name == names[0]

"""The executor, under each start method."""

import asyncio
import concurrent.futures
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


@pytest.fixture
def executor(context):
    with mp.ProcessPoolExecutor(2, mp_context=context) as executor:
        yield executor


def square(number):
    return number * number


def refuse(number):
    raise ValueError(number)


def nap(seconds):
    time.sleep(seconds)
    return seconds


def pid(_number=None):
    return os.getpid()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def broken():
    raise RuntimeError("it cannot begin")


MARK = None


def set_mark(mark):
    global MARK
    MARK = mark


def get_mark():
    return MARK


class Unreadable:
    def __reduce__(self):
        return refuse, (5,)


def test_it_is_an_executor(executor):
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(pow, 2, exp=5)
    assert isinstance(future, concurrent.futures.Future) and future.result(20) == 32
    assert list(executor.map(square, range(9))) == [n * n for n in range(9)]
    assert list(executor.map(pow, range(9), range(9), chunksize=4)) == [n**n for n in range(9)]
    assert list(executor.map(square, range(9), buffersize=2)) == [n * n for n in range(9)]
    futures = [executor.submit(square, n) for n in range(9)]
    done = concurrent.futures.as_completed(futures, 20)
    assert sorted(future.result() for future in done) == [n * n for n in range(9)]
    assert executor.submit(lambda: 5).result(20) == 5


def test_asyncio_runs_calls_in_it(executor):
    async def run():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, square, number) for number in range(8)]
        return await asyncio.gather(*calls)

    assert asyncio.run(run()) == [n * n for n in range(8)]


def test_errors_come_back(executor):
    future = executor.submit(refuse, 3)
    assert future.exception(20).args == (3,)
    assert "in refuse" in str(future.exception().__cause__)
    assert isinstance(executor.submit(square, threading.Lock()).exception(20), TypeError)
    assert isinstance(executor.submit(threading.Lock).exception(20), TypeError)
    for call in (executor.submit(id, Unreadable()), executor.submit(Unreadable)):
        assert isinstance(call.exception(20), BrokenProcessPool)
        assert isinstance(call.exception().__cause__, ValueError)
    results = executor.map(square, [1, 2, "x", 4])
    assert next(results) == 1 and next(results) == 4
    with pytest.raises(TypeError):
        next(results)


def test_a_killed_worker_costs_its_own_task(executor):
    lost = executor.submit(die)
    with pytest.raises(BrokenProcessPool) as raised:
        lost.result(20)
    assert isinstance(raised.value, mp.WorkerLost)
    assert raised.value.exitcode == -signal.SIGKILL
    assert list(executor.map(square, range(20))) == [n * n for n in range(20)]


def test_workers_killed_at_random_cost_their_own_tasks_only(executor):
    chance = random.Random(5)
    executor.submit(pid).result(20)
    for _ in range(3):
        futures = [executor.submit(nap, 0.01) for _ in range(40)]
        time.sleep(chance.uniform(0, 0.1))
        workers = executor._crew.pool._native.worker_pids()
        if workers:
            os.kill(chance.choice(workers), signal.SIGKILL)
        lost = sum(future.exception(60) is not None for future in futures)
        assert lost <= 1


def test_a_call_that_waits_can_be_cancelled(context):
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        running = executor.submit(nap, 0.5)
        waiting = [executor.submit(nap, 600) for _ in range(5)]
        assert all(future.cancel() for future in waiting)
        assert all(future.cancelled() for future in waiting)
        done, _ = concurrent.futures.wait(waiting, 20)
        assert len(done) == 5
        assert running.result(20) == 0.5 and not running.cancel()


def test_map_keeps_its_time(executor):
    executor.submit(pid).result(60)
    results = executor.map(nap, [0, 4], timeout=2)
    assert next(results) == 0
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


def test_a_shut_down_executor_takes_no_calls(context):
    executor = mp.ProcessPoolExecutor(2, mp_context=context)
    futures = [executor.submit(nap, 0.02) for _ in range(40)]
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    cancelled = sum(future.cancelled() for future in futures)
    assert 0 < cancelled < 40
    with pytest.raises(RuntimeError):
        executor.submit(square, 1)
    executor.shutdown()
    never_used = mp.ProcessPoolExecutor(2, mp_context=context)
    never_used.shutdown()


def test_initializers_run_in_each_worker(context):
    with mp.ProcessPoolExecutor(
        1, context, initializer=set_mark, initargs=("here",)
    ) as executor:
        assert executor.submit(get_mark).result(20) == "here"


def test_a_failing_initializer_breaks_it(context):
    with mp.ProcessPoolExecutor(1, context, initializer=broken) as executor:
        with pytest.raises(BrokenProcessPool, match="cannot begin"):
            executor.submit(square, 1).result(60)
        with pytest.raises(BrokenProcessPool):
            executor.submit(square, 1)


def test_terminated_workers_fail_what_they_had(context):
    executor = mp.ProcessPoolExecutor(1, context)
    futures = [executor.submit(nap, 600) for _ in range(3)]
    executor.terminate_workers()
    for future in futures:
        assert isinstance(future.exception(20), BrokenProcessPool)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_are_replaced_after_so_many_calls(method):
    context = mp.get_context(method)
    with mp.ProcessPoolExecutor(1, context, max_tasks_per_child=2) as executor:
        pids = [executor.submit(pid).result(20) for _ in range(4)]
    assert len(set(pids)) == 2


def test_arguments_are_checked():
    for workers in (0, -1):
        with pytest.raises(ValueError):
            mp.ProcessPoolExecutor(workers)
    with pytest.raises(TypeError):
        mp.ProcessPoolExecutor(1, initializer=3)
    with pytest.raises(TypeError):
        mp.ProcessPoolExecutor(1, max_tasks_per_child="1")
    with pytest.raises(ValueError):
        mp.ProcessPoolExecutor(1, max_tasks_per_child=0)
    with pytest.raises(ValueError):
        mp.ProcessPoolExecutor(1, mp.get_context("fork"), max_tasks_per_child=1)


NOT_SHUT_DOWN = """
import sys, time
import bunshin as mp

def say(text):
    time.sleep(0.3)
    print(text, flush=True)

if __name__ == "__main__":
    executor = mp.ProcessPoolExecutor(1, mp.get_context(sys.argv[1]))
    executor.submit(say, "said")
"""


@pytest.mark.parametrize("method", METHODS)
def test_calls_are_done_before_the_interpreter_ends(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(NOT_SHUT_DOWN)
    ran = subprocess.run(
        [sys.executable, str(program), method],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "said\n", "")


INTERRUPTED = """
import sys, time
import bunshin as mp

def nap(number):
    time.sleep(600)

if __name__ == "__main__":
    executor = mp.ProcessPoolExecutor(2, mp.get_context(sys.argv[1]))
    executor.submit(abs, -1).result()
    futures = [executor.submit(nap, number) for number in range(5)]
    print("begun", flush=True)
    if sys.argv[2] == "with":
        with executor:
            futures[0].result()
    futures[0].result()
"""


@pytest.mark.parametrize("style", ["with", "without"])
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_ends_the_program_with_one_traceback(tmp_path, method, style):
    program = tmp_path / "program.py"
    program.write_text(INTERRUPTED)
    running = subprocess.Popen(
        [sys.executable, str(program), method, style],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert running.stdout.readline() == "begun\n"
    time.sleep(0.3)
    # As a terminal does it: to all of them.
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode != 0
    assert err.count("Traceback (most recent call last)") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt")

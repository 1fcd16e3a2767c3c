"""Futures of the executor, and tasks that nobody waits for, under each start method."""

import concurrent.futures
import gc
import os
import pathlib
import signal
import threading
import time
import weakref

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


def refuse_odd(number):
    if number % 2:
        raise ValueError(number)
    return number


def wait_for(path, value=None):
    # Not for ever: a test that has failed waits for this.
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def leave(path):
    pathlib.Path(path).touch()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_of(number, victim):
    if number == victim:
        die()
    return number


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def count(folder):
    return len(list(folder.iterdir()))


def test_tasks_that_nobody_waits_for_are_done_by_workers_that_wear_out(context, tmp_path):
    with context.Pool(2, maxtasksperchild=1) as pool:
        for number in range(10):
            pool.apply_async(leave, (str(tmp_path / str(number)),))
        until(lambda: count(tmp_path) == 10)


def test_tasks_that_nobody_waits_for_are_done_though_a_worker_dies(context, tmp_path):
    with context.Pool(1) as pool:
        pool.apply_async(die)
        for number in range(10):
            pool.apply_async(leave, (str(tmp_path / str(number)),))
        until(lambda: count(tmp_path) == 10)


def test_submitted_calls_are_done_though_nobody_waits(context, tmp_path):
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(die)
        for number in range(5):
            executor.submit(leave, str(tmp_path / str(number)))
        until(lambda: count(tmp_path) == 5)
        # Once more, when the pool has been idle for longer than it is looked after.
        time.sleep(1.5)
        executor.submit(die)
        executor.submit(leave, str(tmp_path / "last"))
        until(lambda: count(tmp_path) == 6)


def test_a_map_that_nobody_iterates_is_done(executor, tmp_path):
    executor.map(leave, [str(tmp_path / str(number)) for number in range(1500)])
    until(lambda: count(tmp_path) == 1500)


def test_a_future_tells_what_becomes_of_its_call(context, tmp_path):
    go = tmp_path / "go"
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        running = executor.submit(wait_for, str(go), 5)
        waiting = executor.submit(square, 3)
        until(running.running)
        assert not running.done() and not running.cancel() and not running.cancelled()
        assert not waiting.running() and not waiting.done()
        assert "pending" in repr(waiting)
        with pytest.raises(concurrent.futures.TimeoutError):
            waiting.result(0.05)
        with pytest.raises(concurrent.futures.TimeoutError):
            waiting.exception(0)
        assert waiting.cancel() and waiting.cancel() and waiting.cancelled() and waiting.done()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.exception()
        leave(go)
        until(running.done)
        assert not running.running() and running.result() == running.result(0) == 5
        assert running.exception() is None and "returned int" in repr(running)


def test_a_failed_call_has_one_exception(executor):
    future = executor.submit(refuse, 7)
    errors = []

    def look():
        errors.append(future.exception(60))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors[0].args == (7,) and all(error is errors[0] for error in errors)
    with pytest.raises(ValueError) as raised:
        future.result()
    assert raised.value is errors[0]


def test_callbacks_are_called_once_whatever_else_is_asked(executor, tmp_path):
    go = tmp_path / "go"
    called = []
    futures = [executor.submit(wait_for, str(go), number) for number in range(20)]
    for future in futures:
        future.add_done_callback(called.append)
    # Threads that wait for results, while others wait to be told.
    results = []
    threads = [threading.Thread(target=lambda f=f: results.append(f.result(60))) for f in futures]
    for thread in threads:
        thread.start()
    leave(go)
    done, not_done = concurrent.futures.wait(futures, 60)
    assert len(done) == 20 and not not_done
    for thread in threads:
        thread.join(60)
    assert sorted(results) == list(range(20))
    until(lambda: len(called) == 20)
    late = []
    for future in futures:
        future.add_done_callback(late.append)
    assert late == futures and sorted(called, key=id) == sorted(futures, key=id)


def test_a_callback_may_use_the_executor(executor):
    chain = []
    done = threading.Event()

    def go_on(future):
        chain.append(future.result())
        if len(chain) == 5:
            done.set()
        else:
            executor.submit(square, chain[-1]).add_done_callback(go_on)

    executor.submit(square, 1).add_done_callback(go_on)
    assert done.wait(60) and chain == [1] * 5
    inner = []
    outer = executor.submit(square, 2)
    outer.add_done_callback(lambda _: inner.append(executor.submit(square, 3).result(60)))
    until(lambda: inner == [9])


def test_a_slow_callback_holds_up_no_result(executor):
    may_go = threading.Event()
    first = executor.submit(square, 2)
    first.add_done_callback(lambda _: may_go.wait(60))
    try:
        assert first.result(60) == 4
        assert [executor.submit(square, n).result(60) for n in range(20)][-1] == 19 * 19
        assert list(executor.map(square, range(2000)))[-1] == 1999 * 1999
    finally:
        may_go.set()


def test_a_callback_that_raises_keeps_nobody_from_being_told(executor):
    called = threading.Event()
    future = executor.submit(square, 2)
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda _: called.set())
    assert called.wait(60)


def test_callbacks_are_called_before_an_executor_is_shut_down(context, tmp_path):
    called = []
    with mp.ProcessPoolExecutor(2, mp_context=context) as executor:
        for number in range(50):
            executor.submit(square, number).add_done_callback(lambda f: called.append(f.result()))
        executor.submit(refuse, 1).add_done_callback(lambda f: called.append(f.exception()))
    assert len(called) == 51


def test_each_future_comes_once_though_it_is_done_meanwhile(executor):
    for _ in range(40):
        futures = [executor.submit(square, n) for n in range(300)]
        others = futures[::3]
        for future in others:
            future.add_done_callback(lambda _: None)
        thread = threading.Thread(target=lambda: [future.result(60) for future in futures])
        thread.start()
        assert set(concurrent.futures.as_completed(futures, 60)) == set(futures)
        thread.join(60)
        assert concurrent.futures.wait(futures, 60).done == set(futures)


def test_a_cancelled_future_tells_those_who_wait(context):
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        running = executor.submit(time.sleep, 2)
        waiting = [executor.submit(square, n) for n in range(5)]
        called = []
        for future in waiting:
            future.add_done_callback(called.append)
        thread = threading.Thread(target=lambda: [future.cancel() for future in waiting])
        thread.start()
        done, _ = concurrent.futures.wait(waiting, 60)
        thread.join(60)
        assert len(done) == 5 and all(future.cancelled() for future in done)
        assert called == waiting
        running.result(60)
        assert called == waiting


def test_shutting_down_cancels_what_has_not_begun(context, tmp_path):
    go = tmp_path / "go"
    executor = mp.ProcessPoolExecutor(1, mp_context=context)
    running = executor.submit(wait_for, str(go), 5)
    waiting = [executor.submit(square, n) for n in range(20)]
    results = executor.map(square, range(2000))
    until(running.running)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting) and not running.done()
    leave(go)
    assert running.result(60) == 5
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)
    executor.shutdown()


def test_an_executor_that_nobody_waits_for_lets_its_pool_go(context):
    executor = mp.ProcessPoolExecutor(2, mp_context=context)
    futures = [executor.submit(bytes, 1_000_000) for _ in range(4)]
    pool = weakref.ref(executor._crew.pool)
    executor.shutdown(wait=False)
    assert [len(future.result(60)) for future in futures] == [1_000_000] * 4
    del executor, futures
    until(lambda: pool() is None)


def test_first_completed_first_exception(executor, tmp_path):
    go = tmp_path / "go"
    slow = executor.submit(wait_for, str(go))
    quick = executor.submit(square, 2)
    done, rest = concurrent.futures.wait([slow, quick], 60, concurrent.futures.FIRST_COMPLETED)
    assert done == {quick} and rest == {slow}
    bad = executor.submit(refuse, 2)
    done, rest = concurrent.futures.wait([slow, bad], 60, concurrent.futures.FIRST_EXCEPTION)
    assert done == {bad} and rest == {slow}
    leave(go)
    assert next(concurrent.futures.as_completed([slow], 60)) is slow


def test_map_gives_results_in_order_and_errors_in_their_place(executor):
    results = executor.map(refuse_odd, [0, 2, 3, 4])
    assert [next(results), next(results)] == [0, 2]
    with pytest.raises(ValueError):
        next(results)
    # The results of a chunk go with the one that fails.
    results = executor.map(refuse_odd, [0, 2, 4, 6, 1, 8], chunksize=2)
    assert [next(results) for _ in range(4)] == [0, 2, 4, 6]
    with pytest.raises(ValueError):
        next(results)
    assert next(results, None) is None
    assert list(executor.map(pow, range(3000), [2] * 3000)) == [n * n for n in range(3000)]
    assert list(executor.map(square, range(1000), chunksize=7)) == [n * n for n in range(1000)]
    assert list(executor.map(square, [])) == [] == list(executor.map(square))
    # What the iterable raises, the call does.
    with pytest.raises(ZeroDivisionError):
        executor.map(square, (1 // n for n in (1, 0)))
    results = executor.map(square, [1, threading.Lock(), 3])
    assert next(results) == 1
    with pytest.raises(TypeError):
        next(results)


def test_a_worker_killed_in_a_map_costs_one_result(executor):
    # A map is over with its first error, as everywhere; its other calls were done.
    results = executor.map(die_of, range(5), [3] * 5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(mp.WorkerLost):
        next(results)
    assert list(executor.map(square, range(50))) == [n * n for n in range(50)]


def test_closing_a_map_cancels_the_rest(executor, tmp_path):
    go = tmp_path / "go"
    marks = tmp_path / "marks"
    marks.mkdir()
    results = executor.map(wait_for, [str(tmp_path), str(go), str(go)] + [str(go)] * 500)
    next(results)
    later = executor.map(leave, [str(marks / str(n)) for n in range(2000)])
    results.close()
    leave(go)
    assert len(list(later)) == 2000 and count(marks) == 2000


def test_results_of_any_size_come_through_a_map(executor):
    sizes = [0, 1, 1000, 70_000, 3_000_000] * 6
    assert [len(data) for data in executor.map(bytes, sizes)] == sizes


def test_nothing_keeps_a_result_that_was_given(executor):
    future = executor.submit(square, 4)
    future.result(60)
    weak = weakref.ref(future)
    del future
    gc.collect()
    assert weak() is None
    told = executor.submit(square, 4)
    told.add_done_callback(lambda _: None)
    told.result(60)
    weak = weakref.ref(told)
    del told
    until(lambda: gc.collect() is None or weak() is None)


def test_a_subclass_whose_submit_is_its_own_is_asked(context):
    class Counting(mp.ProcessPoolExecutor):
        count = 0

        def submit(self, fn, /, *args, **kwargs):
            self.count += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(1, mp_context=context) as executor:
        assert list(executor.map(square, range(5))) == [0, 1, 4, 9, 16]
        assert list(executor.map(pow, range(4), range(4), chunksize=3)) == [1, 1, 4, 27]
    assert executor.count == 7


def test_a_terminated_executor_tells_everybody(context, tmp_path):
    go = str(tmp_path / "go")
    executor = mp.ProcessPoolExecutor(1, mp_context=context)
    futures = [executor.submit(wait_for, go) for _ in range(5)]
    called = []
    futures[1].add_done_callback(called.append)
    until(futures[0].running)
    executor.terminate_workers()
    for future in futures:
        error = future.exception(60)
        assert isinstance(error, concurrent.futures.BrokenExecutor)
    assert called == [futures[1]]


def test_an_executor_that_is_let_go_does_what_it_has(context, tmp_path):
    executor = mp.ProcessPoolExecutor(1, mp_context=context)
    futures = [executor.submit(leave, str(tmp_path / str(n))) for n in range(20)]
    last = futures[-1]
    del executor, futures
    gc.collect()
    assert last.result(60) is None and count(tmp_path) == 20


def test_a_copy_of_the_process_makes_an_executor_of_its_own(context):
    if context.get_start_method() != "fork":
        pytest.skip("only a copy has the parent's executor")
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        future = executor.submit(square, 2)
        future.add_done_callback(lambda _: None)
        assert future.result(60) == 4
        child = context.Process(target=_in_a_copy, args=(executor, context))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert executor.submit(square, 5).result(60) == 25


def _in_a_copy(parents, context):
    with pytest.raises(RuntimeError):
        parents.submit(square, 1)
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        called = []
        future = executor.submit(square, 3)
        future.add_done_callback(called.append)
        assert future.result(60) == 9
        until(lambda: called == [future])

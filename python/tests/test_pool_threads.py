"""One pool that many threads use at once, under each start method."""

import faulthandler
import threading
import time

import pytest

import bunshin as mp

SECONDS = 60


@pytest.fixture(params=("fork", "spawn", "forkserver"))
def context(request):
    return mp.get_context(request.param)


def test_a_thread_that_only_looks_keeps_nobody_from_waking(context):
    """Who looks reads what the workers have sent, also what was to wake the one who waits."""
    with context.Pool(2) as pool:
        never_done = pool.apply_async(time.sleep, (SECONDS,))
        failed = []

        def wait():
            try:
                for _ in range(600):
                    # Long enough for the one who waits to go to sleep.
                    pool.apply(time.sleep, (0.001,))
            except BaseException as error:
                failed.append(error)

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        deadline = time.monotonic() + SECONDS / 2
        while waiting.is_alive() and time.monotonic() < deadline:
            assert not never_done.ready()
        if waiting.is_alive():
            faulthandler.dump_traceback()
        assert not waiting.is_alive(), "it waits for what is there"
        assert not failed


def test_maps_and_calls_of_many_threads_end(context):
    expected = list(range(50))

    def use(pool, failed, first):
        try:
            for number in range(first, first + 20):
                if number % 3:
                    assert pool.map(abs, range(0, -50, -1), 1 if number % 2 else None) == expected
                else:
                    assert pool.apply(abs, (-number,)) == number
        except BaseException as error:
            failed.append(error)

    for _ in range(4):
        failed = []
        with context.Pool(3) as pool:
            threads = [
                threading.Thread(target=use, args=(pool, failed, first), daemon=True)
                for first in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SECONDS / 2)
            assert not any(thread.is_alive() for thread in threads), "it waits for what is there"
            assert not failed

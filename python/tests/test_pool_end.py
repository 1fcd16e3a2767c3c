"""How pools end whose workers have not begun."""

import signal
import time

import pytest

import bunshin as mp


@pytest.mark.parametrize("method", ("spawn", "forkserver"))
def test_workers_that_have_not_begun_are_ended(method):
    # One of them may have begun before the pool is terminated, where others use the processors.
    for _ in range(5):
        pool = mp.get_context(method).Pool(1, time.sleep, (0.2,))
        (worker,) = pool._pool
        pool.terminate()
        pool.join()
        assert worker.exitcode in (0, -signal.SIGTERM)
        if worker.exitcode == -signal.SIGTERM:
            return
    pytest.fail("each was let begin")

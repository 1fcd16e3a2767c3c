"""What a child has registered for its end is run, whatever started it."""

import os

import bunshin as mp
import pytest
from bunshin import util


def leave_mark(path):
    util.Finalize(None, os.mkdir, args=(path,), exitpriority=1)


def take(lock):
    lock.acquire()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_finalizers_of_a_child_are_run(method, tmp_path):
    path = str(tmp_path / "mark")
    child = mp.get_context(method).Process(target=leave_mark, args=(path,))
    child.start()
    child.join(20)
    assert child.exitcode == 0 and os.path.isdir(path)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_managers_lock_stays_locked_when_its_holder_ends_by_itself(method):
    context = mp.get_context(method)
    with context.Manager() as manager:
        lock = manager.Lock()
        child = context.Process(target=take, args=(lock,))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert not lock.acquire(True, 0.5)
        lock.release()

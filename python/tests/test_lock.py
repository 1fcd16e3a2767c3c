"""Locks as objects: how they are called, kept, and used by others."""

import contextlib
import gc
import inspect
import threading
import time
import weakref

import pytest

import bunshin as mp
from bunshin import synchronize

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def kinds():
    return [
        mp.Lock(),
        mp.RLock(),
        mp.Semaphore(2),
        mp.BoundedSemaphore(2),
        mp.Value("i").get_lock(),
    ]


@pytest.mark.parametrize("at", range(5))
def test_every_way_into_a_with_statement(at):
    lock = kinds()[at]
    before = lock._get_value()
    with lock as entered:
        assert entered is True
        assert lock._get_value() == before - 1
        assert lock._is_mine()
    assert lock._get_value() == before
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(lock) is True
        assert lock._get_value() == before - 1
    assert lock._get_value() == before
    # Of the class, and of the object.
    assert type(lock).__enter__(lock) is True
    assert type(lock).__exit__(lock, None, None, None) is None
    enter, leave = lock.__enter__, lock.__exit__
    assert enter() is True
    assert leave() is None
    assert enter() is True
    assert leave(ValueError, ValueError(), None) is None
    assert lock._get_value() == before
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert lock._get_value() == before


@pytest.mark.parametrize("at", range(5))
def test_arguments_by_place_and_by_name(at):
    lock = kinds()[at]
    before = lock._get_value()
    for given, named in (
        ((), {}),
        ((True,), {}),
        ((False,), {}),
        ((1, None), {}),
        ((True, 0.5), {}),
        ((), {"block": False}),
        ((), {"block": True, "timeout": 3}),
        ((), {"timeout": None, "block": 1}),
        ((True,), {"timeout": -1}),
        ((False,), {"timeout": 0.1}),
    ):
        assert lock.acquire(*given, **named) is True
        assert lock.release() is None
    assert lock._get_value() == before
    for given, named in (
        ((True, 1, 2), {}),
        ((), {"blocking": True}),
        ((True,), {"block": True}),
        ((), {"timeout": "soon"}),
        ((True, []), {}),
    ):
        with pytest.raises(TypeError):
            lock.acquire(*given, **named)
    with pytest.raises(TypeError):
        lock.release(1)
    with pytest.raises(TypeError):
        lock.__enter__(1)
    with pytest.raises(TypeError):
        lock.__exit__(None, None, None, None)
    with pytest.raises(ValueError):
        lock.acquire(timeout=float("nan"))

    class Undecided:
        def __bool__(self):
            raise KeyError

    with pytest.raises(KeyError):
        lock.acquire(Undecided())
    assert lock._get_value() == before


def test_what_is_no_lock_is_refused():
    for function in (synchronize.SemLock.acquire, synchronize.SemLock.release):
        with pytest.raises(TypeError):
            function(object())
        with pytest.raises(TypeError):
            function()
    for name in ("__enter__", "__exit__"):
        for cls in (synchronize.Lock, synchronize.Condition):
            function = getattr(cls, name)
            with pytest.raises(TypeError):
                function(object())
            with pytest.raises(TypeError):
                function()
            with pytest.raises(TypeError):
                function.__get__(object())
    bare = synchronize.Lock.__new__(synchronize.Lock)
    for use in (bare.acquire, bare.release, bare.locked):
        with pytest.raises(RuntimeError):
            use()
    with pytest.raises((TypeError, RuntimeError)), bare:
        pass


def test_signatures_are_known():
    lock = mp.Lock()
    assert list(inspect.signature(lock.acquire).parameters) == ["block", "timeout"]
    assert list(inspect.signature(lock.release).parameters) == []
    assert lock.acquire.__doc__ and lock.release.__doc__


@pytest.mark.parametrize("at", range(5))
def test_a_lock_goes_with_its_last_reference(at):
    gc.disable()
    try:
        lock = kinds()[at]
        with lock:
            pass
        enter, leave = lock.__enter__, lock.__exit__
        gone = weakref.ref(lock)
        del lock
        assert gone() is None
        # What was kept of it still is for the same lock.
        assert enter() is True and leave() is None
    finally:
        gc.enable()


def test_subclasses_may_enter_in_their_own_way():
    class Counted(synchronize.Lock):
        entered = 0

        def __enter__(self):
            self.entered += 1
            return super().__enter__()

        def __exit__(self, *exception):
            self.entered -= 1
            return super().__exit__(*exception)

    lock = Counted(ctx=mp.get_context())
    with lock as entered:
        assert entered is True and lock.entered == 1 and lock.locked()
    assert lock.entered == 0 and not lock.locked()


# ---------------------------------------------------------------------------
# The lock of a value.


def test_the_lock_of_a_value_is_an_rlock():
    for shared in (mp.Value("i"), mp.Array("i", 3), mp.Value("i", lock=None)):
        lock = shared.get_lock()
        assert isinstance(lock, synchronize.RLock)
        assert lock is shared.get_lock()
        assert lock.acquire() and lock.acquire(False)
        assert lock._count() == 2 and lock._is_mine() and lock._get_value() == 0
        assert "MainProcess" in repr(lock)
        lock.release()
        lock.release()
        assert lock._count() == 0 and lock._get_value() == 1
        assert "None" in repr(lock)
        with pytest.raises(AssertionError):
            lock.release()


def test_a_thread_cannot_release_what_another_has():
    lock = mp.Value("i").get_lock()
    seen = []

    def release():
        try:
            lock.release()
        except AssertionError as error:
            seen.append(error)

    with lock:
        thread = threading.Thread(target=release)
        thread.start()
        thread.join(60)
        assert len(seen) == 1 and lock._is_mine()


def add_when_told(condition, value, count):
    for _ in range(count):
        with condition:
            while value.value % 2 == 0:
                assert condition.wait(60)
            value.value += 1
            condition.notify()


def test_a_condition_of_the_lock_of_a_value(context):
    value = context.Value("i", 0)
    condition = context.Condition(value.get_lock())
    count = 20
    child = context.Process(target=add_when_told, args=(condition, value, count))
    child.start()
    for _ in range(count):
        # Taken twice, and given up wholly while it waits.
        with condition, value.get_lock():
            value.value += 1
            condition.notify()
            while value.value % 2:
                assert condition.wait(60)
            assert value.get_lock()._count() == 2
    child.join(60)
    assert child.exitcode == 0 and value.value == 2 * count
    assert value.get_lock()._get_value() == 1


def hold_and_wait(condition, value):
    with condition:
        value.value = 1
        condition.wait(60)


def hold_for_ever(value):
    value.get_lock().acquire()
    value.get_obj().value = 2
    time.sleep(600)


def test_a_condition_is_told_that_the_holder_of_its_lock_was_killed(context):
    value = context.Value("i", 0)
    condition = context.Condition(value.get_lock())
    child = context.Process(target=hold_for_ever, args=(value,), daemon=True)
    child.start()
    deadline = time.monotonic() + 60
    while value.get_obj().value != 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.join(60)
    with pytest.raises(mp.AbandonedLock), condition:
        raise AssertionError("it is not entered")
    with condition:
        condition.notify_all()
        assert not condition.wait(0.01)
    # One that waits and is killed has given the lock up.
    child = context.Process(target=hold_and_wait, args=(condition, value), daemon=True)
    child.start()
    deadline = time.monotonic() + 60
    while condition._waiting()[0] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.join(60)
    with condition:
        condition.notify_all()


def test_a_semaphore_is_no_lock_for_a_condition():
    with pytest.raises(TypeError):
        mp.Condition(mp.Semaphore(1))

"""Locks, semaphores, conditions, events and barriers.

A lock belongs to the process that acquired it. If that ends without releasing it, the next one
to acquire it is told by `AbandonedLock`, and has it.
"""

import threading
import time
from multiprocessing import process
from multiprocessing import synchronize as _own
from multiprocessing.synchronize import RECURSIVE_MUTEX, SEM_VALUE_MAX, SEMAPHORE

from . import _native, context

__all__ = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"]


def __getattr__(name):
    return getattr(_own, name)


def _rebuild(cls, *shared):
    made = cls.__new__(cls)
    made._arrive(*shared)
    return made


def _here():
    """The name of this process, and of this thread unless it is the main one."""
    name = process.current_process().name
    thread = threading.current_thread()
    if thread is not threading.main_thread():
        name += "|" + thread.name
    return name


class SemLock(_native.SemLock):
    """What locks and semaphores have in common."""

    _what = "semaphore"
    _is_fork_ctx = False

    def __init__(self, kind, value, maxvalue, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        if kind == RECURSIVE_MUTEX:
            self._open("rlock")
        elif maxvalue == 1:
            self._open("lock")
            if value == 0:
                self.acquire()
        else:
            self._open("semaphore", value, value == maxvalue)

    def __reduce__(self):
        context.assert_sharing(self)
        return _rebuild, (type(self), self._shared())

    def _arrive(self, shared):
        self._adopt(self._what, shared)

    @property
    def _semlock(self):
        return self

    def _owner(self):
        """Who holds this lock, as far as this process can tell."""
        if self._is_mine():
            return _here()
        if self._get_value() == 1:
            return "None"
        return "SomeOtherThread" if self._is_held_here() else "SomeOtherProcess"


class Semaphore(SemLock):
    """A number of permits, which processes acquire and release.

    One that is acquired by `with` comes back if its holder is killed; the next one is told by
    `AbandonedLock`. What `acquire` has taken is gone until somebody calls `release`.
    """

    def __init__(self, value=1, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        self._open("semaphore", value)

    # A call of one function in place of two.
    get_value = SemLock._get_value

    def __repr__(self):
        return f"<{self.__class__.__name__}(value={self._get_value()})>"


class BoundedSemaphore(Semaphore):
    """A semaphore that never has more permits than it began with."""

    def __init__(self, value=1, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        self._most = value
        self._open("semaphore", value, True)

    def __reduce__(self):
        made, (cls, shared) = super().__reduce__()
        return made, (cls, shared, self._most)

    def _arrive(self, shared, most):
        super()._arrive(shared)
        self._most = most

    def __repr__(self):
        return f"<{self.__class__.__name__}(value={self._get_value()}, maxvalue={self._most})>"


class Lock(SemLock):
    """A lock that one thread of one process acquires, and any may release.

    If the process that acquired it has ended, `acquire` raises `AbandonedLock` and has the lock;
    `with` raises it too, and has given the lock back by then.
    """

    _what = "lock"

    def __init__(self, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        self._open("lock")

    def __repr__(self):
        return f"<{self.__class__.__name__}(owner={self._owner()})>"


class RLock(SemLock):
    """A lock that the thread which has it may acquire again.

    It is abandoned as a `Lock` is.
    """

    _what = "rlock"

    def __init__(self, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        self._open("rlock")

    def __repr__(self):
        owner = self._owner()
        if owner == "None":
            count = 0
        else:
            count = self._count() if self._is_mine() else "nonzero"
        return f"<{self.__class__.__name__}({owner}, {count})>"


class _Number:
    """A number in the shape of a semaphore."""

    def __init__(self, value):
        self._value = value

    def get_value(self):
        """The number."""
        return self._value


class Condition(_native.Condition):
    """A place to wait at until another process notifies."""

    def __init__(self, lock=None, *, ctx=None):
        if lock is None:
            lock = ctx.RLock() if ctx is not None else RLock()
        self._use(lock)
        self._open(lock)

    def _use(self, lock):
        self._lock = lock
        self.acquire = lock.acquire
        self.release = lock.release

    def __reduce__(self):
        context.assert_spawning(self)
        return _rebuild, (type(self), self._shared(), self._lock)

    def _arrive(self, shared, lock):
        self._adopt(shared, lock)
        self._use(lock)

    def wait_for(self, predicate, timeout=None):
        """Waits until `predicate()` holds, or for `timeout` seconds; gives what it gave last."""
        result = predicate()
        if result or timeout is None:
            while not result:
                self.wait()
                result = predicate()
            return result
        deadline = time.monotonic() + timeout
        while not result:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def locked(self):
        """Whether its lock is held."""
        return self._lock.locked()

    # How many sleep, and how many of them have been notified and have not gone on yet.
    @property
    def _sleeping_count(self):
        return _Number(self._waiting()[0])

    @property
    def _woken_count(self):
        return _Number(self._waiting()[1])

    @property
    def _wait_semaphore(self):
        return _Number(self._waiting()[1])

    def __repr__(self):
        return f"<{self.__class__.__name__}({self._lock}, {self._waiting()[0]})>"


class Event(_native.Event):
    """A flag that processes wait for."""

    _is_fork_ctx = False

    def __init__(self, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        self._open()

    def __reduce__(self):
        context.assert_sharing(self)
        return _rebuild, (type(self), self._shared())

    def _arrive(self, shared):
        self._adopt(shared)

    def __repr__(self):
        state = "set" if self.is_set() else "unset"
        return f"<{type(self).__qualname__} at {id(self):#x} {state}>"


class Barrier(threading.Barrier):
    """A place where so many processes wait until all of them are there.

    It breaks if one that waits there is killed.
    """

    _is_fork_ctx = False

    def __init__(self, parties, action=None, timeout=None, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        self._native = _native.Barrier(parties)
        self._action = action
        self._timeout = timeout

    def __reduce__(self):
        context.assert_sharing(self)
        return _rebuild, (type(self), self._native._shared(), self._action, self._timeout)

    def _arrive(self, shared, action, timeout):
        self._native = _native.Barrier._adopt(shared)
        self._action = action
        self._timeout = timeout

    def wait(self, timeout=None):
        """Waits for the others; gives this one's number, in the order in which they came."""
        if timeout is None:
            timeout = self._timeout
        index = self._native.wait(timeout, self._action)
        if index is None:
            raise threading.BrokenBarrierError
        return index

    def reset(self):
        """Has it begin anew; for those who wait it is broken."""
        self._native.reset()

    def abort(self):
        """Breaks it, for those who wait and those who come."""
        self._native.abort()

    @property
    def parties(self):
        """How many it is for."""
        return self._native.parties

    @property
    def n_waiting(self):
        """How many wait."""
        return self._native.n_waiting

    @property
    def broken(self):
        """Whether it is broken."""
        return self._native.broken

    def __repr__(self):
        cls = type(self)
        name = f"{cls.__module__}.{cls.__qualname__}"
        if self.broken:
            return f"<{name} at {id(self):#x}: broken>"
        return f"<{name} at {id(self):#x}: waiters={self.n_waiting}/{self.parties}>"

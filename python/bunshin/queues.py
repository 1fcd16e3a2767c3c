"""Queues. What `put` has returned from is in the queue: no thread feeds it."""

import types
from multiprocessing import queues as _own
from multiprocessing.synchronize import SEM_VALUE_MAX
from queue import Empty, Full  # noqa: F401

from . import _native, context

__all__ = ["Queue", "SimpleQueue", "JoinableQueue"]


def __getattr__(name):
    return getattr(_own, name)


def _rebuild(cls, shared, maxsize):
    made = cls.__new__(cls)
    made._adopt(shared)
    if maxsize is not None:
        made._maxsize = maxsize
    return made


class Queue(_native.Queue):
    """A queue of objects from any number of processes to any number of others.

    Without a `maxsize` it takes as many as there is memory for. An object that cannot be pickled
    raises in `put`. `_reader` and `_writer` are there for those who wait for a descriptor.
    """

    __class_getitem__ = classmethod(types.GenericAlias)
    _joinable = False
    _is_fork_ctx = False

    def __init__(self, maxsize=0, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        self._maxsize = maxsize if maxsize > 0 else SEM_VALUE_MAX
        self._open(max(maxsize, 0), self._joinable)

    def __reduce__(self):
        context.assert_sharing(self)
        return _rebuild, (type(self), self._shared(), self._maxsize)

    def join_thread(self):
        """Does nothing, as there is no thread; the queue has to be closed."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self):
        """Does nothing, as there is no thread."""

    def _terminate_broken(self):
        self.close()

    def _start_thread(self):
        pass

    @staticmethod
    def _on_queue_feeder_error(e, obj):
        """Is called with an object that `put` refuses, if a subclass says so."""
        raise e


class JoinableQueue(Queue):
    """A queue that one can wait for until all objects are done."""

    _joinable = True

    def task_done(self):
        """Says that an object which `get` gave is done."""
        self._task_done()

    def join(self):
        """Waits until every object that was put has been declared done.

        Raises `LostItems` if processes have ended with some of them.
        """
        lost = self._join()
        if lost:
            raise context.LostItems(lost)


class SimpleQueue(_native.SimpleQueue):
    """A queue with `put`, `get`, `empty` and `close`."""

    __class_getitem__ = classmethod(types.GenericAlias)
    _is_fork_ctx = False

    def __init__(self, *, ctx=None):
        self._is_fork_ctx = context.is_fork(ctx)
        self._open()

    def __reduce__(self):
        context.assert_sharing(self)
        return _rebuild, (type(self), self._shared(), None)

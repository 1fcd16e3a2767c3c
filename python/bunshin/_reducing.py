"""Reducers that a pool has for itself, beside those that are registered for all.

Subclasses of pools in the manner of joblib's make queues (`_setup_queues`) whose `_reducers` say how
arguments and results of certain types are pickled: arrays as files that are mapped, for example.
There are no such queues here, so that the objects see to it on their own.
"""

import collections
import copyreg
import functools
import io
import pickle

from . import reduction

__all__ = ()


def of(pool):
    """What goes before the tasks of a pool whose queues have reducers; nothing if they have none."""
    pool._setup_queues()
    forward, backward = (
        getattr(getattr(pool, name, None), "_reducers", None) for name in ("_inqueue", "_outqueue")
    )
    return Reducing(forward, backward) if forward or backward else None


class Reducing:
    """Has functions and arguments pickled by reducers, and results by others."""

    def __init__(self, forward, backward):
        self._forward = forward or {}
        # Workers have no other way to come by them, whichever way they are started.
        self._backward = bytes(reduction.ForkingPickler.dumps(backward)) if backward else None

    def function(self, function):
        """In place of a function."""
        return _Function(function, self._forward, self._backward)

    def argument(self, argument):
        """In place of an argument."""
        return _Reduced(argument, self._forward)

    def arguments(self, args, kwds):
        """In place of the arguments of a call."""
        named = {name: self.argument(kwds[name]) for name in kwds}
        return tuple(map(self.argument, args)), named


def _dumps(obj, reducers):
    sink = io.BytesIO()
    pickler = pickle.Pickler(sink, 5)
    pickler.dispatch_table = collections.ChainMap(
        reducers, reduction.ForkingPickler._extra_reducers, copyreg.dispatch_table
    )
    pickler.dump(obj)
    return sink.getvalue()


class _Reduced:
    """An object that arrives as it is, pickled by reducers of its own."""

    def __init__(self, obj, reducers):
        self._obj = obj
        self._reducers = reducers

    def __reduce__(self):
        return pickle.loads, (_dumps(self._obj, self._reducers),)


class _Function:
    """A function that arrives as one whose results are pickled by reducers, if there are any."""

    def __init__(self, function, forward, backward):
        self._function = function
        self._forward = forward
        self._backward = backward

    def __reduce__(self):
        data = _dumps(self._function, self._forward)
        if self._backward is None:
            return pickle.loads, (data,)
        return _answering, (data, self._backward)


# The same ones come with each task.
_reducers = functools.lru_cache(maxsize=4)(pickle.loads)


def _answering(data, backward):
    return _Answering(pickle.loads(data), _reducers(backward))


class _Answering:
    """A function in a worker."""

    def __init__(self, function, reducers):
        self._function = function
        self._reducers = reducers

    def __call__(self, *args, **kwds):
        return _Reduced(self._function(*args, **kwds), self._reducers)

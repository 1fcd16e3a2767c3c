"""Pipes, and connections over sockets.

A pipe runs through shared memory. `Listener` and `Client` are the interpreter's own: they speak
to whatever speaks its wire format.
"""

from multiprocessing import connection as _own
from multiprocessing.connection import *  # noqa: F403
from multiprocessing.connection import wait

from . import _native

__all__ = ["Client", "Listener", "Pipe", "wait"]


def __getattr__(name):
    return getattr(_own, name)


class _Ends(type(_own.Connection)):
    """Has the ends of pipes be connections."""

    def __instancecheck__(cls, instance):
        return isinstance(instance, _native.Connection) or super().__instancecheck__(instance)


class Connection(_own.Connection, metaclass=_Ends):
    """A connection over a descriptor, or an end of a pipe."""

    __doc__ = _own.Connection.__doc__


def Pipe(duplex=True):
    """Returns a pair of connected ends of a pipe.

    One way if `duplex` is false: the first end receives, the second sends.
    """
    return _native.pipe(duplex)

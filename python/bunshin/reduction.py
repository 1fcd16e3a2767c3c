"""Pickling for other processes: the interpreter's own reducers, and what messages need.

Objects are pickled with protocol 5 and their buffers beside them; what pickle cannot name
(lambdas, closures, functions of a notebook) is pickled by value.
"""

import collections
import copyreg
import os
import weakref
from multiprocessing import context as _context
from multiprocessing import reduction as _own
from multiprocessing.reduction import *  # noqa: F403
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError

from . import _native

__all__ = list(_own.__all__)


def __getattr__(name):
    return getattr(_own, name)


class _Reducers(dict):
    """The reducers that there are when one is looked for; a pickler lives long."""

    def __missing__(self, cls):
        try:
            return ForkingPickler._extra_reducers[cls]
        except KeyError:
            return copyreg.dispatch_table[cls]


def _make_pickler(sink, keep_buffer):
    pickler = ForkingPickler(sink, 5, True, lambda buffer: keep_buffer(buffer))
    pickler.dispatch_table = _Reducers()
    return pickler


def _cannot_be_named(error):
    text = str(error)
    return isinstance(error, (PicklingError, AttributeError)) and text.startswith(
        ("Can't pickle", "Can't get", "it's not")
    )


def _dump_by_value(obj, error):
    """Pickles what `error` says that pickle cannot."""
    if not _cannot_be_named(error):
        raise error
    import io

    import cloudpickle

    buffers = []
    sink = io.BytesIO()
    pickler = cloudpickle.Pickler(sink, 5, buffer_callback=buffers.append)
    pickler.dispatch_table = collections.ChainMap(_Reducers(), pickler.dispatch_table)
    try:
        pickler.dump(obj)
    except Exception:
        raise error from None
    return sink.getvalue(), [buffer.raw() for buffer in buffers]


def send_handle(conn, handle, destination_pid):
    """Sends a descriptor over a connection."""
    if isinstance(conn, _native.Connection):
        conn.send_handle(handle)
    else:
        _own.send_handle(conn, handle, destination_pid)


def recv_handle(conn):
    """Receives a descriptor over a connection."""
    if isinstance(conn, _native.Connection):
        return conn.recv_handle()
    return _own.recv_handle(conn)


def _send_descriptors(descriptors):
    """Hands descriptors over to whoever unpickles what is being pickled."""
    popen = _context.get_spawning_popen()
    duplicates = [_own.DupFd(descriptor) for descriptor in descriptors]
    if popen is None:
        # Those who share them have copies.
        for descriptor in descriptors:
            os.close(descriptor)
    else:
        # A child of the interpreter's own, which inherits them when it is started.
        weakref.finalize(popen, lambda: [os.close(descriptor) for descriptor in descriptors])
    return duplicates

"""Pickling for other processes: reducers, and what messages need.

Objects are pickled with protocol 5 and their buffers beside them; what pickle cannot name
(lambdas, closures, functions of a notebook) is pickled by value. Descriptors go along with a
message where it can take them, and are asked for where it cannot.
"""

import collections
import copyreg
import functools
import importlib
import io
import os
import pickle
import socket
import sys
import threading
import weakref
from abc import ABCMeta
from multiprocessing import reduction as _own
from pickle import PicklingError

from . import _native, context

__all__ = [
    "DupFd",
    "ForkingPickler",
    "dump",
    "recv_handle",
    "recvfds",
    "register",
    "send_handle",
    "sendfds",
]

HAVE_SEND_HANDLE = True


def __getattr__(name):
    return getattr(_own, name)


#: The reducers of what is being pickled for messages now, by the identity of the table.
_tables = {}


class ForkingPickler(_own.ForkingPickler):
    """A pickler with reducers of its own: those registered here, and with the interpreter's."""

    _extra_reducers = collections.ChainMap({}, _own.ForkingPickler._extra_reducers)

    def __init__(self, *args):
        super().__init__(*args)
        self.dispatch_table = _Reducers()

    @classmethod
    def register(cls, type, reduce):
        """Has objects of that type be pickled by `reduce`."""
        cls._extra_reducers[type] = reduce
        # A reducer may be what registers it, and then pickles such an object.
        for table in list(_tables.values()):
            table[type] = reduce


register = ForkingPickler.register


def dump(obj, file, protocol=None):
    """Pickles an object to a file, with these reducers."""
    ForkingPickler(file, protocol).dump(obj)


class _Reducers(dict):
    """The reducers that there are when one is looked for; a pickler lives long."""

    def __missing__(self, cls):
        # Most have none: hence no lookup that fails by an exception before the last.
        for reducers in ForkingPickler._extra_reducers.maps:
            if cls in reducers:
                return reducers[cls]
        return copyreg.dispatch_table[cls]


#: Buffers of so many bytes go within the pickle: beside it each takes longer than to copy it.
_WITHIN = 4096


def _make_pickler(sink, keep_buffer):
    def keep(buffer):
        memory = buffer.raw()
        # What is read-only would arrive so from within a pickle: that is seen to where it is sent.
        if memory.nbytes <= _WITHIN and not memory.readonly:
            return True
        keep_buffer(buffer)

    return _MessagePickler(sink, 5, True, keep)


_dump = pickle.Pickler.dump


class _MessagePickler(_own.ForkingPickler):
    """What messages of this package's pipes are pickled with."""

    def dump(self, obj):
        # For each object that is no plain one the pickler asks whether there is a reducer: that
        # of a table of the interpreter's own kind costs a fraction, also with the making of it.
        table = copyreg.dispatch_table.copy()
        for reducers in reversed(ForkingPickler._extra_reducers.maps):
            table.update(reducers)
        self.dispatch_table = table
        key = id(table)
        _tables[key] = table
        try:
            _dump(self, obj)
        finally:
            del _tables[key]


def _cannot_be_named(error):
    text = str(error)
    return isinstance(error, (PicklingError, AttributeError)) and text.startswith(
        ("Can't pickle", "Can't get", "it's not")
    )


@functools.cache
def _by_value_pickler():
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        # A class has to have it: an object's own would be looked for too early.
        dispatch_table = collections.ChainMap(
            ForkingPickler._extra_reducers, cloudpickle.Pickler.dispatch_table
        )

    return Pickler


def _dump_by_value(obj, error):
    """Pickles what `error` says that pickle cannot, or without one what it names in vain."""
    if error is not None and not _cannot_be_named(error):
        raise error
    buffers = []
    sink = io.BytesIO()
    try:
        pickler = _by_value_pickler()(sink, 5, buffer_callback=buffers.append)
        pickler.dump(obj)
    except Exception:
        if error is None:
            raise
        raise error from None
    return sink.getvalue(), [buffer.raw() for buffer in buffers]


# -- peers that may have no other `multiprocessing` than the interpreter's own


class _Peer(threading.local):
    #: Whether this thread is pickling for such a peer.
    is_foreign = False


_peer = _Peer()


class _Foreign:
    """A name in one of the interpreter's own modules, to be pickled."""

    def __init__(self, name, module="multiprocessing.managers"):
        self._name = name
        self._module = module

    def __call__(self, *args):
        raise TypeError("only to be pickled")

    def __reduce__(self):
        return getattr, (_ForeignModule(self._module), self._name)


class _ForeignModule:
    def __init__(self, name):
        self._name = name

    def __reduce__(self):
        return _foreign_module, (self._name,)


def _named_for_peer(function):
    """A function of this package's, or for peers that may have none, CPython's of that name."""
    if not _peer.is_foreign:
        return function
    return _Foreign(function.__name__, function.__module__.replace("bunshin", "multiprocessing", 1))


def _dumps_for_any_peer(obj):
    before, _peer.is_foreign = _peer.is_foreign, True
    try:
        return ForkingPickler.dumps(obj)
    finally:
        _peer.is_foreign = before


#: Where such a peer finds what its messages name, and so does this process by other names.
_SHARED_MODULES = {
    f"multiprocessing.{name}": f"bunshin.{name}"
    for name in ("connection", "managers", "reduction", "resource_sharer")
}


def _ours(module):
    return _SHARED_MODULES.get(module, module)


# What such a peer finds a module by, and what it is found by here.
_foreign_module = importlib.import_module


def _import_ours(module):
    return importlib.import_module(_ours(module))


class _AnyPeerUnpickler(pickle.Unpickler):
    """Takes what such a peer means by its own names for what is meant by them here."""

    def find_class(self, module, name):
        if (module, name) == ("importlib", "import_module"):
            return _import_ours
        return super().find_class(_ours(module), name)


def _loads_from_any_peer(data):
    if b"multiprocessing." in data:
        return _AnyPeerUnpickler(io.BytesIO(data)).load()
    return pickle.loads(data)


# -- descriptors


def DupFd(fd):
    """A copy of a descriptor, to be pickled."""
    popen = context.get_spawning_popen()
    if _native.in_message():
        return _native.Descriptor(fd)
    if popen is not None:
        return popen.DupFd(popen.duplicate_for_child(fd))
    from . import resource_sharer

    return resource_sharer.DupFd(fd)


#: Whether who receives descriptors over a socket says so, as the interpreter's own module has it.
_ACKNOWLEDGES = sys.version_info >= (3, 14)
_ACKNOWLEDGEMENT = b"A"


def _give(sock, fds):
    socket.send_fds(sock, [bytes([len(fds) % 256])], fds)


def _take(sock, size):
    message, fds, flags, _ = socket.recv_fds(sock, 1, size)
    if not message:
        raise EOFError
    if flags & socket.MSG_CTRUNC or len(fds) != size or message[0] != size % 256:
        for fd in fds:
            os.close(fd)
        raise RuntimeError(f"expected {size} descriptors, and got {len(fds)}")
    return fds


def sendfds(sock, fds):
    """Sends descriptors over a Unix socket; from CPython 3.14 on it waits until they are there."""
    _give(sock, fds)
    if _ACKNOWLEDGES and sock.recv(1) != _ACKNOWLEDGEMENT:
        raise RuntimeError("the peer did not say that it has the descriptors")


def recvfds(sock, size):
    """Receives so many descriptors over a Unix socket."""
    fds = _take(sock, size)
    if _ACKNOWLEDGES:
        try:
            sock.send(_ACKNOWLEDGEMENT)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
    return fds


def send_handle(conn, handle, destination_pid):
    """Sends a descriptor over a connection."""
    if isinstance(conn, _native.Connection):
        conn.send_handle(handle)
        return
    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sendfds(sock, [handle])


def recv_handle(conn):
    """Receives a descriptor over a connection."""
    if isinstance(conn, _native.Connection):
        return conn.recv_handle()
    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return recvfds(sock, 1)[0]


def _reduce_socket(sock):
    return _named_for_peer(_rebuild_socket), (DupFd(sock.fileno()), sock.family, sock.type, sock.proto)


def _rebuild_socket(fd, family, type, proto):
    return socket.socket(family, type, proto, fileno=fd.detach())


register(socket.socket, _reduce_socket)


def _send_descriptors(descriptors):
    """Hands descriptors over to whoever unpickles what is being pickled."""
    popen = context.get_spawning_popen()
    duplicates = [DupFd(descriptor) for descriptor in descriptors]
    if popen is None:
        # Those who share them have copies.
        for descriptor in descriptors:
            os.close(descriptor)
    else:
        # A child of the interpreter's own, which inherits them when it is started.
        weakref.finalize(popen, lambda: [os.close(descriptor) for descriptor in descriptors])
    return duplicates


class AbstractReducer(metaclass=ABCMeta):
    """What a context's `reducer` can be made from: this module's functions, to be replaced."""

    ForkingPickler = ForkingPickler
    register = register
    dump = dump
    send_handle = send_handle
    recv_handle = recv_handle
    DupFd = DupFd

"""Server processes that hold objects, and proxies to them.

The wire format is that of the interpreter's own `multiprocessing.managers`, so that either side
may be that, over Unix and TCP sockets. Between two processes of this package on one machine
calls go through shared memory.
"""

import array
import collections.abc
import os
import queue
import sys
import threading
import time
import types

from . import _server, connection, context, pool, process, reduction, shared_memory, util
from ._proxies import (  # noqa: F401
    AutoProxy,
    BaseProxy,
    MakeProxyType,
    ProcessLocalSet,
    RebuildProxy,
    RemoteError,
    State,
    Token,
    _access,
    _accesses,
    _accesses_lock,
    _made,
    _method,
    dispatch,
)
from ._server import Server, SharedMemoryServer, public_methods  # noqa: F401
from .process import AuthenticationString

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]

HAS_SHMEM = True


def get_context(method=None):
    """The context that managers start their servers with by default."""
    return context._default_context.get_context(method)


def _remove_left(address):
    """Removes the socket of a server that was killed, and the folder that it had made for it."""
    folder = os.path.dirname(address) if isinstance(address, str) else ""
    own = process.current_process()._config.get("tempdir")
    if os.path.basename(folder).startswith("pymp-") and folder != own:
        # The folder only if nothing else is there.
        for remove, path in (os.unlink, address), (os.rmdir, folder):
            try:
                remove(path)
            except OSError:
                pass


class BaseManager:
    """Starts a server with objects of registered types, or connects to one."""

    _registry = {}
    _Server = Server

    def __init__(
        self, address=None, authkey=None, serializer="pickle", ctx=None, *, shutdown_timeout=1.0
    ):
        if authkey is None:
            authkey = process.current_process().authkey
        if serializer not in _server.serializers:
            raise KeyError(serializer)
        self._address = address
        self._authkey = AuthenticationString(authkey)
        self._serializer = serializer
        self._ctx = ctx or get_context()
        self._shutdown_timeout = shutdown_timeout
        self._state = State()
        self._state.value = State.INITIAL

    def _check_initial(self):
        if self._state.value == State.STARTED:
            raise context.ProcessError("Already started server")
        if self._state.value == State.SHUTDOWN:
            raise context.ProcessError("Manager has shut down")

    def get_server(self):
        """The server, to be run in this process."""
        self._check_initial()
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def connect(self):
        """Connects to a server that is there."""
        _access(self._address, self._serializer).ask(self._authkey, "dummy")
        self._state.value = State.STARTED

    def start(self, initializer=None, initargs=()):
        """Starts a process that is the server; `initializer` is called in it first."""
        self._check_initial()
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        reader, writer = connection.Pipe(duplex=False)
        self._process = self._ctx.Process(
            target=type(self)._run_server,
            args=(
                self._registry,
                self._address,
                bytes(self._authkey),
                self._serializer,
                writer,
                initializer,
                initargs,
            ),
        )
        ident = ":".join(map(str, self._process._identity))
        self._process.name = f"{type(self).__name__}-{ident}"
        with reader:
            try:
                self._process.start()
            finally:
                writer.close()
            is_started, told = reader.recv()
        if not is_started:
            self._process.join()
            raise RemoteError(told)
        self._address = told
        self._state.value = State.STARTED
        self.shutdown = util.Finalize(
            self,
            type(self)._finalize_manager,
            args=(
                self._process,
                told,
                self._serializer,
                self._authkey,
                self._state,
                self._shutdown_timeout,
            ),
            exitpriority=0,
        )

    @classmethod
    def _run_server(
        cls, registry, address, authkey, serializer, writer, initializer=None, initargs=()
    ):
        _server.run(
            cls._Server, registry, address, authkey, serializer, writer, initializer, initargs
        )

    @staticmethod
    def _finalize_manager(process, address, serializer, authkey, state, shutdown_timeout):
        if process.is_alive():
            util.info("telling a manager's server to end")
            try:
                access = _access(address, serializer)
                with access.client(address, authkey=authkey) as conn:
                    dispatch(conn, None, "shutdown")
            except Exception:
                # It may have ended meanwhile; if it has not, it is ended.
                pass
            process.join(timeout=shutdown_timeout)
            if process.is_alive():
                util.info("a manager's server is still there, and is ended")
                process.terminate()
                process.join(timeout=shutdown_timeout)
                if process.is_alive():
                    process.kill()
                    process.join()
        if process.exitcode != 0:
            _remove_left(address)
        state.value = State.SHUTDOWN
        with _accesses_lock:
            access = _accesses.pop((address, serializer), None)
        if access is not None:
            access.forget()

    def _create(self, typeid, /, *args, **kwds):
        """Has the server make an object; gives its token and its methods."""
        if self._state.value != State.STARTED:
            raise AssertionError("server not yet started")
        made, exposed = _access(self._address, self._serializer).ask(
            self._authkey, "create", (typeid, *args), kwds
        )
        return Token(typeid, self._address, made), exposed

    def join(self, timeout=None):
        """Waits for the server's process to end."""
        if self._process is not None:
            self._process.join(timeout)
            if not self._process.is_alive():
                self._process = None

    def _debug_info(self):
        return _access(self._address, self._serializer).ask(self._authkey, "debug_info")

    def _number_of_objects(self):
        return _access(self._address, self._serializer).ask(self._authkey, "number_of_objects")

    def __enter__(self):
        if self._state.value == State.INITIAL:
            self.start()
        if self._state.value != State.STARTED:
            if self._state.value == State.INITIAL:
                raise context.ProcessError("Unable to start server")
            raise context.ProcessError("Manager has shut down")
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.shutdown()

    @property
    def address(self):
        """The address of the server."""
        return self._address

    @classmethod
    def register(
        cls,
        typeid,
        callable=None,
        proxytype=None,
        exposed=None,
        method_to_typeid=None,
        create_method=True,
    ):
        """Has servers of this class know a type, and managers have a method that makes such
        objects and gives proxies to them."""
        if "_registry" not in cls.__dict__:
            cls._registry = cls._registry.copy()
        proxytype = proxytype or AutoProxy
        exposed = exposed or getattr(proxytype, "_exposed_", None)
        method_to_typeid = method_to_typeid or getattr(proxytype, "_method_to_typeid_", None)
        for key, value in (method_to_typeid or {}).items():
            if type(key) is not str or type(value) is not str:
                raise TypeError(f"method_to_typeid wants names, not {key!r} and {value!r}")
        cls._registry[typeid] = (callable, exposed, method_to_typeid, proxytype)
        if not create_method:
            return

        def make(self, /, *args, **kwds):
            token, exposed = self._create(typeid, *args, **kwds)
            return _made(proxytype, token, self._serializer, self, self._authkey, exposed)

        make.__name__ = typeid
        setattr(cls, typeid, make)


# -- what is registered with every `SyncManager`


class Namespace:
    """An object with the attributes that it is given."""

    def __init__(self, /, **kwds):
        self.__dict__.update(kwds)

    def __repr__(self):
        shown = sorted(item for item in self.__dict__.items() if item[0][0] != "_")
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown)})"


if sys.version_info >= (3, 14):
    RLock, Condition = threading.RLock, threading.Condition
else:
    # Those of the interpreter cannot yet say whether they are held.
    class RLock(type(threading.RLock())):
        def locked(self):
            if self._is_owned():
                return True
            is_free = self.acquire(blocking=False)
            if is_free:
                self.release()
            return not is_free

    class Condition(threading.Condition):
        def __init__(self, lock=None):
            super().__init__(RLock() if lock is None else lock)

        def locked(self):
            return self._lock.locked()


class Value:
    """An object with a value."""

    def __init__(self, typecode, value, lock=True):
        self._typecode = typecode
        self._value = value

    def get(self):
        return self._value

    def set(self, value):
        self._value = value

    def __repr__(self):
        return f"{type(self).__name__}({self._typecode!r}, {self._value!r})"

    value = property(get, set)


def Array(typecode, sequence, lock=True):
    """An array of numbers of one type."""
    return array.array(typecode, sequence)


class IteratorProxy(BaseProxy):
    """Stands for an iterator, or a generator."""

    _exposed_ = ("__next__", "send", "throw", "close")

    def __iter__(self):
        return self

    def __next__(self, *args):
        return self._callmethod("__next__", args)

    def send(self, *args):
        return self._callmethod("send", args)

    def throw(self, *args):
        return self._callmethod("throw", args)

    def close(self, *args):
        return self._callmethod("close", args)


class AcquirerProxy(BaseProxy):
    """Stands for a lock or a semaphore."""

    _exposed_ = ("acquire", "release", "locked")

    def acquire(self, blocking=True, timeout=None):
        self._access.say_goodbye(self._authkey)
        args = (blocking,) if timeout is None else (blocking, timeout)
        return self._callmethod("acquire", args)

    def release(self):
        return self._callmethod("release")

    def locked(self):
        return self._callmethod("locked")

    def __enter__(self):
        return self.acquire()

    def __exit__(self, exc_type, exc_val, exc_tb):
        return self._callmethod("release")


class ConditionProxy(AcquirerProxy):
    """Stands for a condition."""

    _exposed_ = ("acquire", "release", "locked", "wait", "notify", "notify_all")

    def wait(self, timeout=None):
        return self._callmethod("wait", (timeout,))

    def notify(self, n=1):
        return self._callmethod("notify", (n,))

    def notify_all(self):
        return self._callmethod("notify_all")

    def wait_for(self, predicate, timeout=None):
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result


class EventProxy(BaseProxy):
    """Stands for an event."""

    _exposed_ = ("is_set", "set", "clear", "wait")

    def is_set(self):
        return self._callmethod("is_set")

    def set(self):
        return self._callmethod("set")

    def clear(self):
        return self._callmethod("clear")

    def wait(self, timeout=None):
        return self._callmethod("wait", (timeout,))


class BarrierProxy(BaseProxy):
    """Stands for a barrier."""

    _exposed_ = ("__getattribute__", "wait", "abort", "reset")

    def wait(self, timeout=None):
        return self._callmethod("wait", (timeout,))

    def abort(self):
        return self._callmethod("abort")

    def reset(self):
        return self._callmethod("reset")

    @property
    def parties(self):
        return self._callmethod("__getattribute__", ("parties",))

    @property
    def n_waiting(self):
        return self._callmethod("__getattribute__", ("n_waiting",))

    @property
    def broken(self):
        return self._callmethod("__getattribute__", ("broken",))


class NamespaceProxy(BaseProxy):
    """Stands for a namespace; names that begin with an underscore are the proxy's own."""

    _exposed_ = ("__getattribute__", "__setattr__", "__delattr__")

    def __getattr__(self, key):
        if key[0] == "_":
            return object.__getattribute__(self, key)
        return object.__getattribute__(self, "_callmethod")("__getattribute__", (key,))

    def __setattr__(self, key, value):
        if key[0] == "_":
            return object.__setattr__(self, key, value)
        return object.__getattribute__(self, "_callmethod")("__setattr__", (key, value))

    def __delattr__(self, key):
        if key[0] == "_":
            return object.__delattr__(self, key)
        return object.__getattribute__(self, "_callmethod")("__delattr__", (key,))


class ValueProxy(BaseProxy):
    """Stands for a value."""

    _exposed_ = ("get", "set")

    def get(self):
        return self._callmethod("get")

    def set(self, value):
        return self._callmethod("set", (value,))

    value = property(get, set)

    __class_getitem__ = classmethod(types.GenericAlias)


def _like(name, exposed, method_to_typeid=None):
    """A type of proxies as `MakeProxyType` makes them, to be found in this module."""
    methods = {method: _method(method) for method in exposed}
    made = type(name, (BaseProxy,), {**methods, "__module__": __name__})
    made._exposed_ = tuple(exposed)
    if method_to_typeid:
        made._method_to_typeid_ = method_to_typeid
    return made


BaseListProxy = _like(
    "BaseListProxy",
    "__add__ __contains__ __delitem__ __getitem__ __imul__ __len__ __mul__ __reversed__ __rmul__ "
    "__setitem__ append clear copy count extend index insert pop remove reverse sort".split(),
)


class ListProxy(BaseListProxy):
    """Stands for a list."""

    def __iadd__(self, value):
        self._callmethod("extend", (value,))
        return self

    def __imul__(self, value):
        self._callmethod("__imul__", (value,))
        return self

    __class_getitem__ = classmethod(types.GenericAlias)


collections.abc.MutableSequence.register(BaseListProxy)

BaseDictProxy = _like(
    "BaseDictProxy",
    "__contains__ __delitem__ __getitem__ __ior__ __iter__ __len__ __or__ __reversed__ __ror__ "
    "__setitem__ clear copy fromkeys get items keys pop popitem setdefault update values".split(),
    {"__iter__": "Iterator"},
)


class DictProxy(BaseDictProxy):
    """Stands for a dict."""

    def __ior__(self, value):
        self._callmethod("__ior__", (value,))
        return self

    __class_getitem__ = classmethod(types.GenericAlias)


collections.abc.MutableMapping.register(BaseDictProxy)

BaseSetProxy = _like(
    "BaseSetProxy",
    "__and__ __contains__ __iand__ __ior__ __isub__ __iter__ __ixor__ __len__ __or__ __rand__ "
    "__ror__ __rsub__ __rxor__ __sub__ __xor__ __ge__ __gt__ __le__ __lt__ add clear copy "
    "difference difference_update discard intersection intersection_update isdisjoint issubset "
    "issuperset pop remove symmetric_difference symmetric_difference_update union "
    "update".split(),
    {"__iter__": "Iterator"},
)


class SetProxy(BaseSetProxy):
    """Stands for a set."""

    def __ior__(self, value):
        self._callmethod("__ior__", (value,))
        return self

    def __iand__(self, value):
        self._callmethod("__iand__", (value,))
        return self

    def __ixor__(self, value):
        self._callmethod("__ixor__", (value,))
        return self

    def __isub__(self, value):
        self._callmethod("__isub__", (value,))
        return self

    __class_getitem__ = classmethod(types.GenericAlias)


ArrayProxy = _like("ArrayProxy", ("__len__", "__getitem__", "__setitem__"))

BasePoolProxy = _like(
    "BasePoolProxy",
    "apply apply_async close imap imap_unordered join map map_async starmap starmap_async "
    "terminate".split(),
    {
        "apply_async": "AsyncResult",
        "map_async": "AsyncResult",
        "starmap_async": "AsyncResult",
        "imap": "Iterator",
        "imap_unordered": "Iterator",
    },
)


class PoolProxy(BasePoolProxy):
    """Stands for a pool of workers."""

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.terminate()


class SyncManager(BaseManager):
    """A manager of the types that processes share most."""


SyncManager.register("Queue", queue.Queue)
SyncManager.register("JoinableQueue", queue.Queue)
SyncManager.register("Event", threading.Event, EventProxy)
SyncManager.register("Lock", threading.Lock, AcquirerProxy)
SyncManager.register("RLock", RLock, AcquirerProxy)
SyncManager.register("Semaphore", threading.Semaphore, AcquirerProxy)
SyncManager.register("BoundedSemaphore", threading.BoundedSemaphore, AcquirerProxy)
SyncManager.register("Condition", Condition, ConditionProxy)
SyncManager.register("Barrier", threading.Barrier, BarrierProxy)
SyncManager.register("Pool", pool.Pool, PoolProxy)
SyncManager.register("list", list, ListProxy)
SyncManager.register("dict", dict, DictProxy)
SyncManager.register("set", set, SetProxy)
SyncManager.register("Value", Value, ValueProxy)
SyncManager.register("Array", Array, ArrayProxy)
SyncManager.register("Namespace", Namespace, NamespaceProxy)
SyncManager.register("Iterator", proxytype=IteratorProxy, create_method=False)
SyncManager.register("AsyncResult", create_method=False)

# What views of a dict are pickled as.
for _view in (type({}.keys()), type({}.values()), type({}.items())):
    reduction.register(_view, lambda view: (list, (list(view),)))


class SharedMemoryManager(BaseManager):
    """A manager that removes the shared memory it has made when it ends."""

    _Server = SharedMemoryServer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        util.debug("%s created by pid %d", type(self).__name__, os.getpid())

    def __del__(self):
        util.debug("%s.__del__ by pid %d", type(self).__name__, os.getpid())

    def _track(self, made, name):
        try:
            _access(self._address, self._serializer).ask(self._authkey, "track_segment", (name,))
        except BaseException:
            made.unlink()
            raise
        return made

    def SharedMemory(self, size):
        """Makes shared memory of that size."""
        segment = shared_memory.SharedMemory(None, create=True, size=size)
        return self._track(segment, segment.name)

    def ShareableList(self, sequence):
        """Makes a list in shared memory."""
        made = shared_memory.ShareableList(sequence)
        try:
            return self._track(made.shm, made.shm.name) and made
        except BaseException:
            made.shm.close()
            raise

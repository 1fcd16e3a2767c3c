"""What stands for an object of a manager's server, and how it reaches the server.

Over a Unix socket a process asks for a pipe through shared memory, which servers of another
make refuse; then, and over TCP, calls go over the socket.
"""

import errno
import os
import socket
import threading

from . import _native, _server, process, reduction, util
from .context import get_spawning_popen
from .process import AuthenticationString

__all__ = ()

#: Where plain peers have the same in `multiprocessing.managers`.
_MODULES = ("bunshin.managers", "bunshin._proxies")


# -- names for objects


class Token:
    """Says which object of which server is meant."""

    __slots__ = ("typeid", "address", "id")

    def __init__(self, typeid, address, id):
        self.typeid = typeid
        self.address = address
        self.id = id

    def __getstate__(self):
        return self.typeid, self.address, self.id

    def __setstate__(self, state):
        self.typeid, self.address, self.id = state

    def __reduce__(self):
        cls = reduction._Foreign("Token") if reduction._peer.is_foreign else type(self)
        return cls, self.__getstate__()

    def __repr__(self):
        return (
            f"{type(self).__name__}(typeid={self.typeid!r}, "
            f"address={self.address!r}, id={self.id!r})"
        )


# -- talking to servers


class RemoteError(Exception):
    """What went wrong in the server, as text."""

    def __str__(self):
        line = "-" * 75
        return f"\n{line}\n{self.args[0]}{line}"


def _outcome(kind, result):
    """What an answer of a server's means, unless it is a proxy."""
    if kind == _server.RETURN:
        return result
    if kind == _server.ERROR and isinstance(result, BaseException):
        try:
            raise result
        finally:
            # Its traceback has this frame, which is not to have it: that would be a cycle.
            del result
    if kind == _server.UNSERIALIZABLE:
        raise RemoteError(f"Unserializable message: {result}\n")
    if kind == _server.TRACEBACK:
        raise RemoteError(str(result))
    raise ValueError(f"Unrecognized message type {kind!r}")


def dispatch(c, id, methodname, args=(), kwds={}):
    """Asks a server for something over a connection, and waits for the answer."""
    c.send((id, methodname, args, kwds))
    return _outcome(*c.recv())


class _Descriptor:
    def __init__(self, fd):
        self._fd = fd

    def detach(self):
        return self._fd


class _Ways(util.ForkAwareLocal):
    was_open = False


class _Access:
    """This process's way to the server at an address."""

    def __init__(self, address, serializer):
        self.address = address
        self.client = _server.serializers[serializer][1]
        # Of each thread: what it calls over, and whether it had that before.
        self.local = _Ways()
        #: Whether the server has no pipes to give; unknown at first.
        self.is_plain = serializer != "pickle" or not isinstance(address, (str, bytes))
        self._says_goodbye = None

    def ask(self, authkey, name, args=(), kwds={}):
        """Asks the server itself for something."""
        caller = getattr(self.local, "caller", None) or getattr(self.local, "asker", None)
        if caller is None and not self.is_plain:
            caller = self.local.asker = self._share(authkey)
        if caller is not None:
            try:
                kind, result = caller.call("", name, args, kwds)
            except (EOFError, OSError):
                # The next one at this address may be another server.
                self.forget()
            else:
                try:
                    return result if kind is None else _outcome(kind, result)
                finally:
                    del result
        with self.client(self.address, authkey=authkey) as conn:
            return dispatch(conn, None, name, args, kwds)

    def call(self, authkey, ident, name, args, kwds):
        """Calls a method of an object: what kind of answer, and the answer."""
        caller = getattr(self.local, "caller", None)
        if caller is None and not self.is_plain:
            caller = self.local.__dict__.pop("asker", None) or self._again(self._share, authkey)
            self.local.caller = caller
        try:
            if caller is not None:
                kind, result = caller.call(ident, name, args, kwds)
                return (_server.RETURN if kind is None else kind), result
            conn = getattr(self.local, "connection", None)
            if conn is None:
                conn = self._again(self._connect, authkey)
            conn.send((ident, name, args, kwds))
        except (EOFError, OSError):
            self.forget()
            raise
        except BaseException:
            if caller is not None and not caller.is_open:
                self.forget()
            raise
        try:
            return conn.recv()
        except BaseException:
            # The answer may be still to come, and would be taken for that to the next call.
            self.forget()
            raise

    def _again(self, way, authkey):
        """Connects this thread, perhaps not for the first time."""
        try:
            return way(authkey)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if not self.local.was_open:
                raise
            # What `multiprocessing`, which keeps its first connection, says from then on.
            raise BrokenPipeError(errno.EPIPE, "the manager's server is gone") from error

    def _connect(self, authkey):
        name = process.current_process().name
        if threading.current_thread().name != "MainThread":
            name += "|" + threading.current_thread().name
        conn = self.client(self.address, authkey=authkey)
        dispatch(conn, None, "accept_connection", (name,))
        self.local.connection = conn
        return conn

    def _share(self, authkey):
        with self.client(self.address, authkey=authkey) as conn:
            conn.send((None, "accept_shared", (), {}))
            kind, result = conn.recv()
            if kind != _server.RETURN:
                # A server of another make.
                self.is_plain = True
                return None
            packed, count = result
            with _socket_of(conn) as door:
                handles = reduction._take(door, count)
        pipe = _native.unpack(packed, [_Descriptor(fd) for fd in handles])
        return _native.Caller(pipe)

    def say_goodbye(self, authkey):
        """Tells the server when this process ends, other than by being killed: locks that it
        then holds stay locked."""
        if self._says_goodbye != os.getpid():
            self._says_goodbye = os.getpid()
            util.Finalize(None, _say_goodbye, args=(self, authkey, os.getpid()), exitpriority=20)

    def forget(self):
        """Ends this thread's connections."""
        for name in ("asker", "caller", "connection"):
            kept = self.local.__dict__.pop(name, None)
            if kept is not None:
                # What objects were not called over counts for nothing there.
                self.local.was_open = self.local.was_open or name != "asker"
                kept.close()


def _say_goodbye(access, authkey, pid):
    if os.getpid() == pid:
        try:
            access.ask(authkey, "leave")
        except Exception as error:
            util.debug("a manager's server was not told of the end: %s", error)


def _socket_of(conn):
    return socket.socket(fileno=os.dup(conn.fileno()))


_accesses = {}
_accesses_lock = util.ForkAwareThreadLock()


def _access(address, serializer):
    key = address, serializer
    with _accesses_lock:
        if key not in _accesses:
            _accesses[key] = _Access(address, serializer)
        return _accesses[key]


class State:
    """Where a manager is in its life."""

    __slots__ = ("value",)
    INITIAL, STARTED, SHUTDOWN = range(3)


def _made(proxytype, token, serializer, manager, authkey, exposed):
    """A proxy to an object that was just made, and that refers to itself until then."""
    proxy = proxytype(token, serializer, manager=manager, authkey=authkey, exposed=exposed)
    _access(token.address, serializer).ask(authkey, "decref", (token.id,))
    return proxy


# -- proxies


class ProcessLocalSet(set):
    """A set that is empty in a copy of this process."""

    def __init__(self):
        util.register_after_fork(self, lambda obj: obj.clear())

    def __reduce__(self):
        return type(self), ()


class BaseProxy:
    """Stands for an object of a server's, and calls its methods."""

    def __init__(
        self,
        token,
        serializer,
        manager=None,
        authkey=None,
        exposed=None,
        incref=True,
        manager_owned=False,
    ):
        self._token = token
        self._id = token.id
        self._serializer = serializer
        self._manager = manager
        own = _own_server(token.address)
        if own is not None:
            self._authkey = own.authkey
        elif authkey is not None:
            self._authkey = AuthenticationString(authkey)
        elif manager is not None:
            self._authkey = manager._authkey
        else:
            self._authkey = process.current_process().authkey
        self._access = _access(token.address, serializer)
        #: The process that took the reference.
        self._referrer = None
        if incref:
            self._incref()
        util.register_after_fork(self, BaseProxy._after_fork)

    def _incref(self):
        own = _own_server(self._token.address)
        if own is not None:
            own.incref(_OWN, self._id)
        else:
            self._access.ask(self._authkey, "incref", (self._id,))
        self._referrer = os.getpid()
        self._release_at_end()

    def _release_at_end(self):
        state = self._manager._state if self._manager is not None else None
        self._close = util.Finalize(
            self,
            BaseProxy._decref,
            args=(self._token, self._authkey, state, self._access),
            exitpriority=10,
        )

    @staticmethod
    def _decref(token, authkey, state, access):
        if state is not None and state.value != State.STARTED:
            return
        own = _own_server(token.address)
        try:
            if own is not None:
                own.decref(_OWN, token.id)
            else:
                access.ask(authkey, "decref", (token.id,))
        except Exception as error:
            # There is no server any more, and no object.
            util.debug("a reference could not be given back: %s", error)

    def _after_fork(self):
        self._manager = None
        if self._referrer == os.getpid():
            # A child under `forkserver`, which forgets about finalizers once its arguments are there.
            self._release_at_end()
            return
        try:
            self._incref()
        except Exception as error:
            util.info("a proxy in a copy of its process has no object: %s", error)

    def _callmethod(self, methodname, args=(), kwds={}):
        """Calls a method of the object, and gives its result, which may be a proxy."""
        kind, result = self._access.call(self._authkey, self._id, methodname, args, kwds)
        if kind == _server.RETURN:
            return result
        if kind == _server.PROXY:
            return self._proxy_of(*result)
        try:
            return _outcome(kind, result)
        finally:
            del result

    def _proxy_of(self, exposed, token):
        token = Token(token.typeid, self._token.address, token.id)
        registry = self._manager._registry if self._manager is not None else None
        if registry is None or token.typeid not in registry:
            from .managers import SyncManager

            registry = SyncManager._registry
        proxytype = registry[token.typeid][-1] if token.typeid in registry else AutoProxy
        return _made(proxytype, token, self._serializer, self._manager, self._authkey, exposed)

    def _getvalue(self):
        """A copy of the object."""
        return self._callmethod("#GETVALUE")

    def __reduce__(self):
        kwds = {}
        if get_spawning_popen() is not None:
            kwds["authkey"] = bytes(self._authkey)
        rebuild, function = RebuildProxy, type(self)
        if getattr(self, "_isauto", False):
            function = AutoProxy
            kwds["exposed"] = self._exposed_
        if reduction._peer.is_foreign:
            rebuild = reduction._Foreign("RebuildProxy")
            if function.__module__ in _MODULES:
                function = reduction._Foreign(function.__name__)
        return rebuild, (function, self._token, self._serializer, kwds)

    def __deepcopy__(self, memo):
        return self._getvalue()

    def __repr__(self):
        return f"<{type(self).__name__} object, typeid {self._token.typeid!r} at {id(self):#x}>"

    def __str__(self):
        try:
            return self._callmethod("__repr__")
        except Exception:
            return repr(self)[:-1] + "; '__str__()' failed>"


def _own_server(address):
    """The server that this process is, if it is the one at that address."""
    server = getattr(process.current_process(), "_manager_server", None)
    return server if server is not None and server.address == address else None


#: Who refers to objects of this process's own server.
_OWN = _server._Asking(_server._Session(None, None), None)


def RebuildProxy(func, token, serializer, kwds):
    """The proxy that was pickled."""
    token = Token(token.typeid, token.address, token.id)
    incref = kwds.pop("incref", True)
    # A child that is being unpickled takes over references; in others the proxy is a new one.
    return func(token, serializer, incref=incref, **kwds)


_proxy_types = {}


def MakeProxyType(name, exposed):
    """A type of proxies that have these methods."""
    key = name, tuple(exposed)
    if key not in _proxy_types:
        methods = {method: _method(method) for method in exposed}
        made = type(name, (BaseProxy,), methods)
        made._exposed_ = tuple(exposed)
        _proxy_types[key] = made
    return _proxy_types[key]


def _method(name):
    def call(self, /, *args, **kwds):
        return self._callmethod(name, args, kwds)

    call.__name__ = name
    return call


def AutoProxy(
    token,
    serializer,
    manager=None,
    authkey=None,
    exposed=None,
    incref=True,
    manager_owned=False,
):
    """A proxy that has the object's public methods."""
    if authkey is None:
        authkey = manager._authkey if manager is not None else process.current_process().authkey
    if exposed is None:
        own = _own_server(token.address)
        if own is not None:
            exposed = own.get_methods(None, token)
        else:
            exposed = _access(token.address, serializer).ask(authkey, "get_methods", (token,))
        exposed = tuple(sorted(exposed))
    made = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)
    proxy = made(token, serializer, manager=manager, authkey=authkey, incref=incref)
    proxy._isauto = True
    return proxy

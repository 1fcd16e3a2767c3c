"""The server of a manager: the process that holds the objects.

    another program  --socket-->  a thread for each connection ---+
                                                                  +--> the objects
    a client's thread  --shared memory-->  one thread for all ----+
                                               |                  |
                                               +--> a thread of its own, where it may take long

Whoever shows the key over the socket can talk the protocol of `multiprocessing.managers`: a
request on a connection of its own for the server itself, and then calls of objects. A client
on the same machine can ask for a pipe through shared memory instead. Calls of built-in types
that hold nothing but built-in types are carried out by the thread that receives them, as none
of them waits or runs the program's code.
"""

import array
import collections
import errno
import os
import queue
import select
import signal
import socket
import struct
import sys
import threading
import traceback

from . import _native, connection, process, reduction, util

__all__ = ()

#: Descriptor of what the server answers.
RETURN, ERROR, PROXY, TRACEBACK, UNSERIALIZABLE = (
    "#RETURN",
    "#ERROR",
    "#PROXY",
    "#TRACEBACK",
    "#UNSERIALIZABLE",
)

#: Types with methods that never wait and, over built-in types, run no code of the program's.
_QUICK_TYPES = {dict, list, set, array.array}

#: After so many quick calls in a row, a client is served by the one thread again.
_QUICK_CALLS = 16

_CREDENTIALS = struct.Struct("iII")

_locks = (type(threading.Lock()), type(threading.RLock()), threading.Semaphore, threading.Condition)


#: How to listen and to connect, by how messages are made from objects.
serializers = {
    "pickle": (connection.Listener, connection.Client),
    "xmlrpclib": (connection.XmlListener, connection.XmlClient),
}


def public_methods(obj):
    """The names of an object's methods that are for everybody."""
    return [name for name in dir(obj) if name[0] != "_" and callable(getattr(obj, name))]


class _Held:
    """An object, and what belongs to it."""

    __slots__ = ("obj", "exposed", "method_to_typeid", "typeid", "references")

    def __init__(self, obj, exposed, method_to_typeid, typeid):
        self.obj = obj
        self.exposed = exposed
        self.method_to_typeid = method_to_typeid
        self.typeid = typeid
        self.references = 0


class _Session:
    """A thread of a client's: what it does, and what it holds."""

    def __init__(self, server, pid):
        self.server = server
        self.pid = pid
        #: Locks that were acquired and not released, by identity.
        self.locks = collections.Counter()
        #: Whether the client has said that it ends.
        self.has_left = False
        self._calls = None

    def post(self, reply, request):
        """Has the session's own thread answer a request, and those that follow."""
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=self._run, daemon=True).start()
        self._calls.put((reply, request))

    def gone(self):
        """The connection has ended."""
        if self._calls is None:
            self.server._sessions.discard(self)
        else:
            self._calls.put((None, None))

    def _run(self):
        try:
            while True:
                reply, request = self._calls.get()
                if reply is None:
                    return
                self._converse(reply, request)
                self.server._quick.give_back(reply, self)
                del reply, request
        except (EOFError, OSError, ValueError):
            # The client is gone, or does not keep to the protocol.
            pass
        finally:
            self.end()

    def _converse(self, reply, request):
        """Answers until this is nothing that wants a thread of its own."""
        quick = 0
        while True:
            kind, result = self._answer(request)
            _send_answer(lambda kind, result: reply.send(kind, result, True), kind, result)
            del kind, result
            if type(request) is tuple and self.server._quick.is_quick(*request[:2]):
                quick += 1
                if quick == _QUICK_CALLS:
                    return
            else:
                quick = 0
            request = reply.next()

    def _answer(self, request):
        try:
            if type(request) is not tuple:
                ident, name, args, kwds = request.load()
                # What is not of built-in types runs code of the program's from now on.
                if ident and not _native.is_harmless((args, kwds)):
                    self.server._quick.withdraw(ident)
            else:
                (ident, name, args), kwds = request, {}
            if not ident:
                return RETURN, self.server._control(self, None, name, args, kwds)
        except Exception:
            return TRACEBACK, traceback.format_exc()
        return self.server._call(self, ident, name, args, kwds)

    def note(self, ident, obj, name, result):
        """Keeps count of the locks that the client holds."""
        if name in ("acquire", "__enter__"):
            if result:
                self.locks[ident] += 1
        elif name in ("release", "__exit__"):
            holder = self if self.locks[ident] else self.server._holder(ident)
            if holder is not None:
                holder.locks[ident] -= 1

    def end(self):
        """Gives back what a client held that is not there any more."""
        held = [ident for ident, count in self.locks.items() if count > 0]
        if held and self.pid is not None:
            try:
                watched = os.pidfd_open(self.pid)
            except OSError:
                pass
            else:
                # Another thread of its may release them.
                connection.wait([watched])
                os.close(watched)
            if self.has_left:
                held = []
            for ident in held:
                while self.locks[ident] > 0:
                    self.locks[ident] -= 1
                    try:
                        self.server._objects[ident].obj.release()
                    except (KeyError, RuntimeError, ValueError):
                        break
        self.server._sessions.discard(self)


def _send_answer(send, kind, result):
    """Sends an answer, or why it cannot be sent."""
    try:
        send(kind, result)
    except (EOFError, ConnectionError):
        raise
    except Exception:
        if kind == ERROR:
            text = "".join(traceback.format_exception(result))
        else:
            text = traceback.format_exc()
        send(UNSERIALIZABLE, text)


def _peer_pid(conn):
    """Who is at the other end, where the system knows."""
    try:
        with socket.socket(fileno=os.dup(conn.fileno())) as peer:
            if peer.family != socket.AF_UNIX:
                return None
            size = _CREDENTIALS.size
            told = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            return _CREDENTIALS.unpack(told)[0] or None
    except (OSError, ValueError):
        return None


def _has_ended(pid):
    """Whether a process is not there any more."""
    try:
        watched = os.pidfd_open(pid)
    except OSError as error:
        return error.errno == errno.ESRCH
    try:
        return bool(connection.wait([watched], 0))
    finally:
        os.close(watched)


class Server:
    """Holds objects, and carries out what clients want of them."""

    #: What clients can ask the server itself for.
    public = (
        "accept_connection",
        "accept_shared",
        "create",
        "debug_info",
        "decref",
        "dummy",
        "get_methods",
        "incref",
        "leave",
        "number_of_objects",
        "shutdown",
    )

    def __init__(self, registry, address, authkey, serializer):
        if not isinstance(authkey, bytes):
            raise TypeError(f"Authkey {authkey!r} is type {type(authkey)!s}, not bytes")
        self.registry = registry
        self.authkey = process.AuthenticationString(authkey)
        self.listener = serializers[serializer][0](
            address=address, backlog=128, authkey=self.authkey
        )
        self.address = self.listener.address
        self._objects = {}
        self._idents = {}
        self._last = 0
        # Dropping an object may drop proxies in it.
        self.mutex = threading.RLock()
        self._quick = _native.Server()
        self._sessions = set()
        #: How many references each process has, by object.
        self._owners = {}
        self._watched = {}
        self._wake, self._waker = socket.socketpair()
        self._is_over = False

    # -- the life of the server

    def serve_forever(self):
        """Serves clients until one of them says that the server is to end."""
        self._serve(None)

    def _serve(self, parent):
        process.current_process()._manager_server = self
        for target in (self._accept_all, self._serve_shared):
            threading.Thread(target=target, daemon=True).start()
        try:
            self._watch(parent)
        finally:
            self._quick.close()
            self.listener.close()
            sys.exit(0)

    def _watch(self, parent):
        """Waits for the end, and meanwhile for those of clients."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if parent is not None:
            poller.register(parent, select.POLLIN)
        while True:
            try:
                ready = poller.poll()
            except KeyboardInterrupt:
                return
            for fd, _ in ready:
                if fd == self._wake.fileno():
                    self._wake.recv(4096)
                elif fd == parent:
                    return
                else:
                    poller.unregister(fd)
                    self._disown(fd)
            if self._is_over:
                return
            with self.mutex:
                for fd in self._watched:
                    poller.register(fd, select.POLLIN)

    def _disown(self, fd):
        """A process has ended: what it referred to, it does not any more."""
        with self.mutex:
            pid = self._watched.pop(fd)
            os.close(fd)
            owned = self._owners.pop(pid, {})
        for ident, count in owned.items():
            self._release(ident, count)

    def _own(self, pid, ident, count):
        """Notes that a process has more references, or less; whether they are to be counted.

        What a process has asked for may be read after its end, when what it had was let go.
        """
        if pid is None:
            return True
        owned = self._owners.get(pid)
        if count < 0 and (owned is None or owned[ident] <= 0):
            return not _has_ended(pid)
        if owned is None:
            try:
                fd = os.pidfd_open(pid)
            except OSError as error:
                return error.errno != errno.ESRCH
            owned = self._owners[pid] = collections.Counter()
            self._watched[fd] = pid
            self._waker.send(b"w")
        owned[ident] += count
        if owned[ident] <= 0:
            del owned[ident]
        return True

    def _holder(self, ident):
        for session in list(self._sessions):
            if session.locks[ident] > 0:
                return session
        return None

    # -- connections

    def _accept_all(self):
        while not self._is_over:
            try:
                accepted = self.listener.accept()
            except (OSError, EOFError, connection.AuthenticationError):
                # Whoever it was has been told.
                if self.listener._listener is None:
                    return
                continue
            threading.Thread(target=self._serve_request, args=(accepted,), daemon=True).start()

    def _serve_request(self, conn):
        """Carries out what the first message of a connection wants of the server."""
        with conn:
            session = _Session(self, _peer_pid(conn))
            try:
                try:
                    _, name, args, kwds = conn.recv()
                    result = RETURN, self._control(session, conn, name, args, kwds)
                except Exception:
                    result = TRACEBACK, traceback.format_exc()
                if result[1] is not _ANSWERED:
                    _send_answer(lambda *answer: conn.send(answer), *result)
            except (OSError, EOFError):
                # It did not wait for the answer.
                pass

    def _control(self, session, conn, name, args, kwds):
        if name not in self.public:
            raise AttributeError(f"the server has no function {name!r} for clients")
        return getattr(self, name)(_Asking(session, conn), *args, **kwds)

    def accept_connection(self, c, name):
        """Turns this connection into one for calls."""
        threading.current_thread().name = name
        conn, session = c.conn, c.session
        conn.send((RETURN, None))
        self._sessions.add(session)
        try:
            while True:
                try:
                    request = conn.recv()
                except (EOFError, OSError):
                    return _ANSWERED
                except Exception:
                    answer = TRACEBACK, traceback.format_exc()
                else:
                    try:
                        ident, method, args, kwds = request
                    except (TypeError, ValueError):
                        answer = TRACEBACK, traceback.format_exc()
                    else:
                        if not _native.is_harmless((args, kwds)):
                            self._quick.withdraw(ident)
                        answer = self._call(session, ident, method, args, kwds)
                _send_answer(lambda *answer: conn.send(answer), *answer)
                del request, answer
        except (EOFError, OSError):
            return _ANSWERED
        finally:
            conn.close()
            session.end()

    def accept_shared(self, c):
        """Gives the client a pipe for calls."""
        if c.session.pid is None:
            raise ValueError("there are pipes for those on the same machine only")
        ours, theirs = _native.pipe(True)
        session = _Session(self, c.session.pid)
        self._sessions.add(session)
        packed, handles = _native.pack(theirs)
        try:
            c.conn.send((RETURN, (packed, len(handles))))
            with socket.socket(fileno=os.dup(c.conn.fileno())) as door:
                reduction._give(door, handles)
        finally:
            for handle in handles:
                os.close(handle)
            theirs.close()
        self._quick.add(ours, session)
        return _ANSWERED

    def _serve_shared(self):
        self._quick.run((self._post, self._answer_large, self._answer_raised), self._gone)

    def _post(self, session, reply, request):
        session.post(reply, request)

    def _answer_large(self, reply, result):
        _send_answer(lambda kind, result: reply.send(kind, result, False), RETURN, result)

    def _answer_raised(self, reply, error):
        _send_answer(lambda kind, result: reply.send(kind, result, False), ERROR, error)

    def _gone(self, session):
        session.gone()

    # -- calls

    def _call(self, session, ident, name, args, kwds):
        """Calls a method of an object."""
        try:
            held = self._objects.get(ident)
            if held is None:
                raise KeyError(f"the server has no object {ident!r}")
            if name not in held.exposed:
                return self._call_any(held, ident, name, args)
            obj = held.obj
            try:
                result = getattr(obj, name)(*args, **kwds)
            except Exception as error:
                return ERROR, error
            if isinstance(obj, _locks):
                session.note(ident, obj, name, result)
            typeid = held.method_to_typeid and held.method_to_typeid.get(name)
            if typeid:
                from ._proxies import Token

                made, exposed = self._add(session.pid, typeid, (result,), {})
                return PROXY, (exposed, Token(typeid, self.address, made))
            return RETURN, result
        except Exception:
            return TRACEBACK, traceback.format_exc()

    def _call_any(self, held, ident, name, args):
        """What can be asked of any object."""
        if name == "#GETVALUE":
            return RETURN, held.obj
        if name in ("__str__", "__repr__"):
            return RETURN, (str if name == "__str__" else repr)(held.obj)
        raise AttributeError(
            f"method {name!r} of {type(held.obj)!r} object is not in exposed={held.exposed!r}"
        )

    # -- what clients ask of the server itself

    def dummy(self, c):
        """Only shows that the server is there."""

    def debug_info(self, c):
        """A line for each object."""
        with self.mutex:
            return "\n".join(
                f"  {ident}:       refcount={held.references}\n    {str(held.obj)[:75]}"
                for ident, held in sorted(self._objects.items())
            )

    def leave(self, c):
        """The client ends properly: what it has locked, it has left locked."""
        # Of the sessions that there are: another process may get its number.
        for session in list(self._sessions):
            if session.pid == c.session.pid:
                session.has_left = True

    def number_of_objects(self, c):
        """How many objects there are."""
        return len(self._objects)

    def shutdown(self, c):
        """Ends the server."""
        util.debug("a manager's server was told to end")
        try:
            if c.conn is not None:
                c.conn.send((RETURN, None))
        finally:
            self._is_over = True
            self._waker.send(b"w")
        return _ANSWERED if c.conn is not None else None

    def create(self, c, typeid, /, *args, **kwds):
        """Makes an object; gives its identity and its methods."""
        return self._add(c.session.pid, typeid, args, kwds)

    def _add(self, pid, typeid, args, kwds):
        make, exposed, method_to_typeid, _ = self.registry[typeid]
        if make is not None:
            obj = make(*args, **kwds)
        elif kwds or len(args) != 1:
            raise ValueError("without a callable, the object is the one argument")
        else:
            (obj,) = args
        exposed = public_methods(obj) if exposed is None else list(exposed)
        if method_to_typeid:
            exposed += [name for name in method_to_typeid if name not in exposed]
        with self.mutex:
            ident = self._idents.get(id(obj))
            if ident is None or self._objects[ident].typeid != typeid:
                self._last += 1
                ident = f"{self._last:x}"
                self._objects[ident] = _Held(obj, frozenset(exposed), method_to_typeid, typeid)
                self._idents[id(obj)] = ident
            self._objects[ident].references += 1
            is_counted = self._own(pid, ident, 1)
        if self._is_quick(obj) and _native.is_harmless((args, kwds)):
            quick = [name for name in exposed if name not in (method_to_typeid or ())]
            self._quick.offer(ident, obj, quick)
        if not is_counted:
            self._release(ident, 1)
        return ident, tuple(exposed)

    def _is_quick(self, obj):
        from .managers import Namespace, Value

        return type(obj) in _QUICK_TYPES or type(obj) in (Namespace, Value)

    def get_methods(self, c, token):
        """The methods of an object."""
        return set(self._objects[token.id].exposed)

    def incref(self, c, ident):
        """One more proxy refers to an object."""
        with self.mutex:
            held = self._objects[ident]
            if self._own(c.session.pid, ident, 1):
                held.references += 1

    def decref(self, c, ident):
        """One proxy less refers to an object."""
        with self.mutex:
            is_counted = self._own(c.session.pid, ident, -1)
        if is_counted:
            self._release(ident, 1)

    def _release(self, ident, count):
        with self.mutex:
            held = self._objects.get(ident)
            if held is None:
                return
            held.references -= count
            if held.references > 0:
                return
            del self._objects[ident]
            if self._idents.get(id(held.obj)) == ident:
                del self._idents[id(held.obj)]
            self._quick.withdraw(ident)
        util.debug("disposing of object with id %r", ident)
        # What its end runs, runs without the lock.
        del held


class _Asking:
    """Who asks the server for something, and over what."""

    __slots__ = ("conn", "session")

    def __init__(self, session, conn):
        self.session = session
        self.conn = conn


#: What is given back by those who have answered themselves.
_ANSWERED = object()


class SharedMemoryServer(Server):
    """Also keeps the names of shared memory, and removes it at the end."""

    public = (*Server.public, "track_segment", "release_segment", "list_segments")

    def __init__(self, *args, **kwds):
        super().__init__(*args, **kwds)
        self._segments = []

    def track_segment(self, c, segment_name):
        """Takes charge of a segment."""
        with self.mutex:
            self._segments.append(segment_name)

    def release_segment(self, c, segment_name):
        """Removes a segment."""
        with self.mutex:
            self._segments.remove(segment_name)
        self._remove(segment_name)

    def list_segments(self, c):
        """The names of all segments."""
        return list(self._segments)

    @staticmethod
    def _remove(name):
        from .shared_memory import SharedMemory

        try:
            segment = SharedMemory(name)
        except FileNotFoundError:
            return
        segment.close()
        segment.unlink()

    def _watch(self, parent):
        try:
            super()._watch(parent)
        finally:
            for name in self._segments:
                self._remove(name)


def _sentinel(parent):
    """What is readable once the parent has ended.

    A copy's own is the end of a pipe, the other end of which later copies have too.
    """
    try:
        watched = os.pidfd_open(parent.pid)
        if os.getppid() == parent.pid:
            return watched
        os.close(watched)
    except OSError:
        pass
    # It has ended, which can be read from a pipe that nobody writes to.
    watched, writer = os.pipe()
    os.close(writer)
    return watched


def run(server_type, registry, address, authkey, serializer, writer, initializer, initargs):
    """Is the process of a server."""
    # An interrupt is the manager's process to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if initializer is not None:
            initializer(*initargs)
        server = server_type(registry, address, authkey, serializer)
    except Exception:
        writer.send((False, traceback.format_exc()))
        writer.close()
        sys.exit(1)
    writer.send((True, server.address))
    writer.close()
    parent = process.parent_process()
    util.info("manager serving at %r", server.address)
    try:
        server._serve(_sentinel(parent) if parent is not None else None)
    finally:
        # Threads that wait for clients are not to see the interpreter end.
        util._exit_function()
        util._flush_std_streams()
        os._exit(0)

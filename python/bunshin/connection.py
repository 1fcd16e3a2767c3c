"""Pipes, and connections over sockets.

A pipe runs through shared memory. What `Listener` and `Client` give speaks the wire format of
the interpreter's own `multiprocessing.connection`, so that either end may be that.
"""

import collections
import contextlib
import os
import select
import socket
import struct
import threading
import time

from . import _authentication, _native, reduction, util
from ._authentication import (  # noqa: F401
    CHALLENGE,
    FAILURE,
    WELCOME,
    answer_challenge,
    deliver_challenge,
)
from .context import AuthenticationError, BufferTooShort

__all__ = ["Client", "Listener", "Pipe", "wait"]

# The names that these have had since CPython 3.12.
_CHALLENGE, _WELCOME, _FAILURE = CHALLENGE, WELCOME, FAILURE
_create_response = _authentication.create_response
_verify_challenge = _authentication.verify_challenge

BUFSIZE = 8192

default_family = "AF_UNIX"
families = ["AF_INET", "AF_UNIX"]

#: Seconds that a peer has to show that it knows the key.
GREETING_SECONDS = 20

_HEADER = struct.Struct("!i")
_LONG = struct.Struct("!Q")
#: Longer messages are announced by -1 and a longer number.
_SHORT_MAX = 0x7FFFFFFF
#: As much is allocated before anything of a message is there.
_FIRST = 64 << 10
_MOST_AT_ONCE = 1 << 30


class _Ends(type):
    """Has the ends of pipes be connections."""

    def __instancecheck__(cls, instance):
        return isinstance(instance, _native.Connection) or super().__instancecheck__(instance)


class Connection(metaclass=_Ends):
    """A connection over a descriptor: a socket, or a pipe of the system's.

    The ends of this package's pipes count as instances.
    """

    def __init__(self, handle, readable=True, writable=True):
        if handle.__index__() < 0:
            raise ValueError("invalid handle")
        if not readable and not writable:
            raise ValueError("a connection must be readable, writable, or both")
        self._handle = handle.__index__()
        self._readable = readable
        self._writable = writable

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _descriptor(self, readable=False, writable=False):
        if self._handle is None:
            raise OSError("handle is closed")
        if readable and not self._readable:
            raise OSError("connection is write-only")
        if writable and not self._writable:
            raise OSError("connection is read-only")
        return self._handle

    @property
    def closed(self):
        """True if the connection is closed."""
        return self._handle is None

    @property
    def readable(self):
        """True if messages can be received."""
        return self._readable

    @property
    def writable(self):
        """True if messages can be sent."""
        return self._writable

    def fileno(self):
        """The descriptor that this connection is over."""
        return self._descriptor()

    def close(self):
        """Closes the connection."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def send(self, obj):
        """Sends an object, which is pickled."""
        self._descriptor(writable=True)
        self._send_message(reduction._dumps_for_any_peer(obj))

    def send_bytes(self, buf, offset=0, size=None):
        """Sends the bytes of any object that lends them, or a part of these."""
        self._descriptor(writable=True)
        view = memoryview(buf).cast("B")
        if offset < 0:
            raise ValueError("offset is negative")
        if len(view) < offset:
            raise ValueError("buffer length < offset")
        if size is None:
            size = len(view) - offset
        elif size < 0:
            raise ValueError("size is negative")
        elif offset + size > len(view):
            raise ValueError("buffer length < offset + size")
        self._send_message(view[offset : offset + size])

    def recv(self):
        """Receives an object."""
        self._descriptor(readable=True)
        return reduction._loads_from_any_peer(self._receive_message(None))

    def recv_bytes(self, maxlength=None):
        """Receives the bytes of a message."""
        self._descriptor(readable=True)
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        message = self._receive_message(maxlength)
        return message if type(message) is bytes else bytes(message)

    def recv_bytes_into(self, buf, offset=0):
        """Receives the bytes of a message into writable memory; returns how many."""
        self._descriptor(readable=True)
        with memoryview(buf) as view, view.cast("B") as target:
            if offset < 0:
                raise ValueError("negative offset")
            if offset > len(target):
                raise ValueError("offset too large")
            message = self._receive_message(None)
            if len(message) > len(target) - offset:
                raise BufferTooShort(bytes(message))
            target[offset : offset + len(message)] = message
            return len(message)

    def poll(self, timeout=0.0):
        """Whether something can be received, or comes within so many seconds."""
        self._descriptor(readable=True)
        return bool(wait([self], timeout))

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_tb):
        self.close()

    def __reduce__(self):
        handle = reduction.DupFd(self._descriptor())
        return reduction._named_for_peer(rebuild_connection), (handle, self._readable, self._writable)

    def _send_message(self, body):
        size = len(body)
        if size > _SHORT_MAX:
            header = _HEADER.pack(-1) + _LONG.pack(size)
        else:
            header = _HEADER.pack(size)
        if size <= BUFSIZE:
            self._write(header + body)
            return
        written = os.writev(self._handle, [header, body])
        if written < len(header):
            self._write(header[written:])
            written = len(header)
        if written < len(header) + size:
            with memoryview(body) as view:
                self._write(view[written - len(header) :])

    def _write(self, data):
        written = os.write(self._handle, data)
        if written == len(data):
            return
        with memoryview(data) as view:
            while written < len(view):
                written += os.write(self._handle, view[written:])

    def _receive_message(self, limit):
        (size,) = _HEADER.unpack(self._read(_HEADER.size, True))
        if size == -1:
            (size,) = _LONG.unpack(self._read(_LONG.size, False))
        if size < 0 or (limit is not None and size > limit):
            # Where the next message begins is known only by receiving this one.
            if self._writable:
                self._readable = False
            else:
                self.close()
            raise OSError("bad message length")
        return self._read(size, False)

    def _read(self, size, is_first):
        """So many bytes; memory is taken for them as they come."""
        if size <= _FIRST:
            data = os.read(self._handle, size)
            if len(data) == size:
                return data
            if not data:
                self._ended(is_first)
        else:
            data = b""
        got = len(data)
        buffer = bytearray(min(size, _FIRST))
        buffer[:got] = data
        while got < size:
            if got == len(buffer):
                buffer += bytes(min(len(buffer), size - got))
            with memoryview(buffer) as view:
                count = os.readv(self._handle, [view[got : got + _MOST_AT_ONCE]])
            if count == 0:
                self._ended(is_first and got == 0)
            got += count
        return buffer

    def _ended(self, is_between_messages):
        if is_between_messages:
            raise EOFError
        raise OSError("got end of file during message")


def rebuild_connection(handle, readable, writable):
    """The connection that another process has pickled."""
    return Connection(handle.detach(), readable, writable)


def Pipe(duplex=True):
    """Returns a pair of connected ends of a pipe.

    One way if `duplex` is false: the first end receives, the second sends.
    """
    return _native.pipe(duplex)


def arbitrary_address(family):
    """An address of that family that nobody listens at."""
    if family == "AF_INET":
        return "localhost", 0
    if family == "AF_UNIX":
        name = f"listener-{os.urandom(6).hex()}"
        return os.path.join(util.get_temp_dir(), name)
    raise ValueError(f"unrecognized family: {family!r}")


def address_type(address):
    """The family that an address belongs to."""
    if type(address) is tuple:
        return "AF_INET"
    if type(address) is str and address.startswith("\\\\"):
        # A pipe of Windows, which no socket here can be.
        return "AF_PIPE"
    if type(address) is str or (type(address) is bytes and address[:1] == b"\0"):
        return "AF_UNIX"
    # Which of the two it is is `multiprocessing`'s choice.
    wrong = ValueError if isinstance(address, bytes) or not address else TypeError
    raise wrong(f"address type of {address!r} unrecognized")


def _socket(family):
    kind = getattr(socket, family, None) if family.startswith("AF_") else None
    if kind is None:
        # What `multiprocessing` raises, which knows this one, and looks for others in `socket`.
        wrong = ValueError if family == "AF_PIPE" else AttributeError
        raise wrong(f"there are no sockets of a family {family}")
    made = socket.socket(kind)
    made.setblocking(True)
    return made


class _Greeting:
    """A peer that has yet to show that it knows the key."""

    def __init__(self, accepted, peer, authkey):
        self.socket = accepted
        self.peer = peer
        self.deadline = time.monotonic() + GREETING_SECONDS
        self._steps = _authentication.greet(authkey)
        self._wanted = self._incoming = self._outgoing = b""
        self._expected = _HEADER.size
        self._is_over = False
        accepted.setblocking(False)
        self._advance(None)

    def _advance(self, message):
        try:
            reply = self._steps.send(message)
            while reply is not None:
                self._outgoing += _HEADER.pack(len(reply)) + reply
                reply = self._steps.send(None)
        except StopIteration:
            self._is_over = True

    def events(self):
        """What it waits for."""
        return select.POLLOUT if self._outgoing else select.POLLIN

    def go_on(self):
        """Goes on as far as it can without waiting; whether the peer is welcome."""
        try:
            while True:
                if self._outgoing:
                    sent = self.socket.send(self._outgoing)
                    self._outgoing = self._outgoing[sent:]
                    continue
                if self._is_over:
                    self.socket.setblocking(True)
                    return True
                data = self.socket.recv(self._expected - len(self._incoming))
                if not data:
                    raise EOFError
                self._incoming += data
                if len(self._incoming) == _HEADER.size:
                    (size,) = _HEADER.unpack(self._incoming)
                    if not 0 <= size <= _authentication.MESSAGE_MAX:
                        raise OSError("bad message length")
                    self._expected = _HEADER.size + size
                if len(self._incoming) == self._expected:
                    message = self._incoming[_HEADER.size :]
                    self._incoming, self._expected = b"", _HEADER.size
                    self._advance(message)
        except BlockingIOError:
            return False

    def say_what_is_left(self):
        """The last word to a peer that is turned away, if it takes it now."""
        try:
            self.socket.send(self._outgoing)
        except OSError:
            pass


class Listener:
    """Listens at an address, and accepts connections.

    Peers that have to show a key do so side by side: one that says nothing holds up nobody,
    and is given up after some seconds.
    """

    def __init__(self, address=None, family=None, backlog=1, authkey=None):
        family = family or (address and address_type(address)) or default_family
        if authkey is not None and not isinstance(authkey, bytes):
            raise TypeError("authkey should be a byte string")
        address = address or arbitrary_address(family)
        self._listener = _socket(family)
        try:
            if family != "AF_UNIX":
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(address)
            self._listener.listen(backlog)
            self._address = self._listener.getsockname()
        except OSError:
            self._listener.close()
            raise
        self._family = family
        self._authkey = authkey
        self._last_accepted = None
        self._begin()
        if authkey is not None:
            # Another process that has the listener, too, may be quicker to accept a peer.
            self._listener.setblocking(False)
            util.register_after_fork(self, Listener._begin_in_copy)
        self._unlink = None
        if family == "AF_UNIX" and isinstance(address, str) and address[:1] != "\0":
            self._unlink = util.Finalize(
                self, _unlink, args=(os.path.abspath(address), os.getpid()), exitpriority=0
            )

    def _begin(self):
        self._greetings = []
        self._turn = threading.Lock()
        self._process = os.getpid()

    def _begin_in_copy(self):
        # Those who have not shown the key yet are the parent's to see to, and its thread's.
        for greeting in self._greetings:
            greeting.socket.close()
        self._begin()

    def accept(self):
        """Waits for a peer, and returns the connection to it.

        Raises `AuthenticationError` for one that does not know the key.
        """
        listener = self._listener
        if listener is None:
            raise OSError("listener is closed")
        if self._authkey is None:
            accepted, self._last_accepted = listener.accept()
            accepted.setblocking(True)
            return Connection(accepted.detach())
        if self._process != os.getpid():
            # A copy that nobody has told: one of `os.fork`.
            self._begin_in_copy()
        with self._turn:
            return self._greet(listener)

    def _greet(self, listener):
        while True:
            poller = select.poll()
            poller.register(listener, select.POLLIN)
            for greeting in self._greetings:
                poller.register(greeting.socket, greeting.events())
            patience = None
            if self._greetings:
                first = min(greeting.deadline for greeting in self._greetings)
                patience = max(0, first - time.monotonic()) * 1000 + 1
            ready = {fd for fd, _ in poller.poll(patience)}
            if listener.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    accepted, peer = listener.accept()
                    greeting = _Greeting(accepted, peer, self._authkey)
                    self._greetings.append(greeting)
                    ready.add(accepted.fileno())
            now = time.monotonic()
            for greeting in list(self._greetings):
                if greeting.socket.fileno() not in ready and now < greeting.deadline:
                    continue
                try:
                    if greeting.go_on():
                        self._greetings.remove(greeting)
                        self._last_accepted = greeting.peer
                        return Connection(greeting.socket.detach())
                    if now >= greeting.deadline:
                        raise AuthenticationError(
                            "the peer took too long to show that it knows the key"
                        )
                except BaseException:
                    self._greetings.remove(greeting)
                    greeting.say_what_is_left()
                    greeting.socket.close()
                    raise

    def close(self):
        """Stops to listen; removes the file of the address."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.close()
        for greeting in self._greetings:
            greeting.socket.close()
        self._greetings.clear()
        unlink, self._unlink = self._unlink, None
        if unlink is not None:
            unlink()

    @property
    def address(self):
        """The address that this listens at."""
        return self._address

    @property
    def last_accepted(self):
        """The address of the last peer, if it has one."""
        return self._last_accepted

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_tb):
        self.close()


def _unlink(path, pid):
    # A copy of the process that listens does not.
    if os.getpid() == pid:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def Client(address, family=None, authkey=None):
    """Returns a connection to whoever listens at an address."""
    family = family or address_type(address)
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError("authkey should be a byte string")
    with _socket(family) as connecting:
        connecting.connect(address)
        connection = Connection(connecting.detach())
    if authkey is not None:
        try:
            answer_challenge(connection, authkey)
            deliver_challenge(connection, authkey)
        except BaseException:
            connection.close()
            raise
    return connection


class _XmlConnection:
    """A connection whose objects are XML, of the few types that XML-RPC has."""

    def __init__(self, connection):
        self._connection = connection

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def send(self, obj):
        import xmlrpc.client

        text = xmlrpc.client.dumps((obj,), None, None, None, True)
        self._connection.send_bytes(text.encode())

    def recv(self):
        import xmlrpc.client

        (obj,), _ = xmlrpc.client.loads(self._connection.recv_bytes().decode())
        return obj

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_tb):
        self._connection.close()


class XmlListener(Listener):
    """A listener for those whose objects are XML."""

    def accept(self):
        return _XmlConnection(super().accept())


def XmlClient(*args, **kwds):
    """A connection to such a listener."""
    return _XmlConnection(Client(*args, **kwds))


def wait(object_list, timeout=None):
    """Waits until some of the objects are ready, and returns those.

    Objects are connections, sockets, sentinels of processes, and whatever else has a
    descriptor or is one.
    """
    by_descriptor = collections.defaultdict(list)
    poller = select.poll()
    for item in object_list:
        try:
            descriptor = item if isinstance(item, int) else item.fileno()
        except AttributeError:
            raise ValueError(f"Invalid file object: {item!r}") from None
        if descriptor < 0:
            raise ValueError(f"Invalid file descriptor: {descriptor}")
        by_descriptor[descriptor].append(item)
        poller.register(descriptor, select.POLLIN)
    if not by_descriptor and timeout is None:
        raise ValueError("there is nothing to wait for")
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None
        if deadline is not None:
            # As much as the system takes; it is asked again.
            left = min(max(0, deadline - time.monotonic()), 1_000_000)
        ready = poller.poll(None if left is None else -(-left * 1000 // 1))
        for descriptor, events in ready:
            if events & select.POLLNVAL:
                raise OSError(9, f"descriptor {descriptor} is closed")
        if ready or (deadline is not None and time.monotonic() >= deadline):
            return [item for descriptor, _ in ready for item in by_descriptor[descriptor]]

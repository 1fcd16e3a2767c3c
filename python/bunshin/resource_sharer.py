"""Descriptors for processes that ask for them.

Where a descriptor cannot go along with a message, what is pickled is an address and a
number, and a thread of this process gives the descriptor to whoever shows up there with the
number (and the key of this program's processes).
"""

import contextlib
import copyreg
import os
import signal
import socket
import threading
import traceback

from . import process, util

__all__ = ["DupFd", "DupSocket", "stop"]


class DupFd:
    """A copy of a descriptor, to be pickled; it is given away once."""

    def __init__(self, fd):
        self._id = _sharer.keep(os.dup(fd))

    def __reduce__(self):
        from . import reduction

        cls = reduction._named_for_peer(type(self))
        return copyreg._reconstructor, (cls, object, None), self.__dict__

    def detach(self):
        """The descriptor, in the process that has unpickled this."""
        from . import reduction

        with _Sharer.connect(self._id) as connection, _socket_of(connection) as sock:
            (fd,) = reduction._take(sock, 1)
            # Givers of CPython up to 3.13 do not wait for it, and may be gone.
            with contextlib.suppress(OSError):
                sock.send(reduction._ACKNOWLEDGEMENT, socket.MSG_NOSIGNAL)
            return fd


class DupSocket(DupFd):
    """A copy of a socket, to be pickled; it is given away once."""

    def __init__(self, sock):
        super().__init__(sock.fileno())

    def detach(self):
        """The socket, in the process that has unpickled this."""
        return socket.socket(fileno=super().detach())


def _socket_of(connection):
    return socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


class _Sharer:
    """What is to be given away, and the thread that does."""

    def __init__(self):
        self._begin()
        util.register_after_fork(self, _Sharer._begin_in_copy)

    def _begin(self):
        self._lock = threading.Lock()
        self._kept = {}
        self._last = 0
        self._listener = self._thread = self._address = None

    def _begin_in_copy(self):
        # What is kept is the parent's to give away.
        for fd in self._kept.values():
            os.close(fd)
        if self._listener is not None:
            self._listener.close()
        self._begin()

    def keep(self, fd):
        """Keeps a descriptor for somebody; gives the address and the number."""
        with self._lock:
            if self._listener is None:
                self._start()
            self._last += 1
            self._kept[self._last] = fd
            return self._address, self._last

    def _start(self):
        from .connection import Listener

        authkey = process.current_process().authkey
        self._listener = Listener(backlog=128, authkey=authkey)
        self._address = self._listener.address
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    @staticmethod
    def connect(ident):
        """A connection on which the descriptor with that address and number comes."""
        from .connection import Client

        address, number = ident
        connection = Client(address, authkey=process.current_process().authkey)
        connection.send((number, os.getpid()))
        return connection

    def _serve(self, listener):
        from . import reduction

        # Signals are for the main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            try:
                with listener.accept() as connection:
                    if not connection.poll(10):
                        continue
                    request = connection.recv()
                    if request is None:
                        return
                    number, _ = request
                    with self._lock:
                        fd = self._kept.pop(number)
                    try:
                        with _socket_of(connection) as sock:
                            reduction._give(sock, [fd])
                        # Some say that they have it, others just close.
                        connection.poll(10)
                    finally:
                        os.close(fd)
            except Exception:
                if listener is not self._listener or listener._listener is None:
                    return
                # Whoever asked wrongly learns of it by the end of the connection.
                if not util.is_exiting():
                    util.debug("a request for a descriptor failed: %s", traceback.format_exc())

    def stop(self, timeout=None):
        """Ends the thread; what it kept is closed."""
        with self._lock:
            if self._listener is None:
                return
            try:
                from .connection import Client

                with Client(self._address, authkey=process.current_process().authkey) as last:
                    last.send(None)
            except (OSError, EOFError):
                pass
            self._thread.join(timeout)
            if self._thread.is_alive():
                util.sub_warning("the thread that shares descriptors did not stop")
            self._listener.close()
            for fd in self._kept.values():
                os.close(fd)
            self._kept.clear()
            self._listener = self._thread = self._address = None


_sharer = _Sharer()
stop = _sharer.stop

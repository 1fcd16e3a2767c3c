"""Sockets and connections in messages between this package and CPython's own `multiprocessing`.

The receiver asks the sender for the descriptor, with the key of the program: both have the same.
"""

import os
import socket

import pytest
from test_wire import INTERPRETERS, KEY, Peer

import bunshin as mp
from bunshin import connection, process, resource_sharer
from bunshin.connection import Client, Listener


@pytest.fixture(params=sorted(INTERPRETERS))
def interpreter(request):
    return INTERPRETERS[request.param]


@pytest.fixture(autouse=True)
def key():
    # Who gives descriptors away goes by the key that there was when it began.
    resource_sharer.stop()
    current = process.current_process()
    before, current.authkey = current.authkey, KEY
    yield
    resource_sharer.stop()
    current.authkey = before


TAKES = """
import multiprocessing
from multiprocessing.connection import Client, Connection
address, key = given
multiprocessing.current_process().authkey = key
with Client(address, authkey=key) as wire:
    first, second, third = wire.recv()
    first.sendall(b"over the socket")
    assert type(second) is Connection and second.writable
    second.send(["over", "the connection"])
    second.close()
    third.close()
    assert third.closed
    # What could not be fetched is the caller's to know.
    try:
        wire.recv()
    except Exception as error:
        print(type(error).__name__)
"""


def test_cpython_takes_what_is_sent_to_it(interpreter, tmp_path):
    ours, theirs = socket.socketpair()
    with Listener(str(tmp_path / "socket"), authkey=KEY) as listener:
        with Peer(interpreter, TAKES, listener.address, KEY) as peer, listener.accept() as wire:
            near, far = socket.socketpair()
            sent = connection.Connection(far.detach())
            receiver = connection.Connection(near.detach())
            unused = connection.Connection(os.dup(0), writable=False)
            wire.send((theirs, sent, unused))
            assert ours.recv(100) == b"over the socket"
            assert receiver.recv() == ["over", "the connection"]
            sent.close()
            with pytest.raises(EOFError):
                receiver.recv()
            # An end of a pipe through shared memory means nothing to them.
            wire.send(connection.Pipe()[0])
            assert peer.end() == "ModuleNotFoundError"
            for end in (receiver, unused):
                end.close()
    for end in (ours, theirs):
        end.close()


GIVES = """
import multiprocessing, socket
from multiprocessing.connection import Client
address, key = given
multiprocessing.current_process().authkey = key
ours, theirs = socket.socketpair()
here, there = multiprocessing.Pipe()
with Client(address, authkey=key) as wire:
    wire.send((theirs, there))
    assert ours.recv(100) == b"over the socket"
    assert here.recv() == ["over", "the connection"]
    here.send("back")
    wire.recv()
print("done")
"""


def test_what_cpython_sends_is_taken(interpreter, tmp_path):
    with Listener(str(tmp_path / "socket"), authkey=KEY) as listener:
        with Peer(interpreter, GIVES, listener.address, KEY) as peer, listener.accept() as wire:
            first, second = wire.recv()
            with first:
                first.sendall(b"over the socket")
            assert type(second) is connection.Connection
            with second:
                second.send(["over", "the connection"])
                assert second.recv() == "back"
            wire.send(None)
            assert peer.end() == "done"


def send_over(address):
    process.current_process().authkey = KEY
    ours, theirs = socket.socketpair()
    near, far = socket.socketpair()
    with Client(address, authkey=KEY) as wire:
        wire.send((theirs, connection.Connection(far.detach())))
        assert ours.recv(100) == b"over the socket"
        assert connection.Connection(near.detach()).recv() == "over the connection"
        wire.recv()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_between_two_that_have_the_package(method, tmp_path):
    with Listener(str(tmp_path / "socket"), authkey=KEY) as listener:
        child = mp.get_context(method).Process(target=send_over, args=(listener.address,))
        child.start()
        with listener.accept() as wire:
            first, second = wire.recv()
            with first, second:
                first.sendall(b"over the socket")
                assert type(second) is connection.Connection
                second.send("over the connection")
            wire.send(None)
        child.join(20)
        assert child.exitcode == 0

"""Connections of both kinds: the ends of pipes, and those over sockets."""

import array
import hmac
import itertools
import os
import random
import socket
import threading
import time

import pytest

import bunshin as mp
from bunshin import reduction
from bunshin.connection import (
    AuthenticationError,
    BufferTooShort,
    Client,
    Connection,
    Listener,
    wait,
)

METHODS = ("fork", "spawn", "forkserver")
SECONDS = 30


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def over_a_socket():
    first, second = socket.socketpair()
    return Connection(first.detach()), Connection(second.detach())


@pytest.fixture(params=["pipe", "socket"])
def pair(request):
    first, second = mp.Pipe() if request.param == "pipe" else over_a_socket()
    yield first, second
    first.close()
    second.close()


OBJECTS = [
    None,
    True,
    7,
    -(2**40),
    2**100,
    1.5,
    "text",
    "\ud800",
    b"bytes",
    (1, (2, ())),
    [1, "a", [None]],
    {"a": [1], 2: "b"},
    {1, 2},
    bytearray(b"x" * 100_000),
    b"x" * 300_000,
    ["x" * 5000] * 3,
]


def test_objects_come_as_they_were_sent(pair):
    here, there = pair
    for sent in OBJECTS:
        sending = threading.Thread(target=here.send, args=(sent,))
        sending.start()
        got = there.recv()
        sending.join(SECONDS)
        assert got == sent and type(got) is type(sent)
    loop = []
    loop.append(loop)
    here.send(loop)
    got = there.recv()
    assert got[0] is got


def test_bytes(pair):
    here, there = pair
    here.send_bytes(b"0123456789", 2, 5)
    assert there.recv_bytes() == b"23456"
    here.send_bytes(b"")
    assert there.recv_bytes() == b""
    here.send_bytes(array.array("i", [1, 2]))
    target = array.array("i", [0] * 4)
    assert there.recv_bytes_into(target, 4) == 8
    assert target.tolist() == [0, 1, 2, 0]
    here.send_bytes(b"too long")
    with pytest.raises(BufferTooShort) as raised:
        there.recv_bytes_into(bytearray(3))
    assert raised.value.args == (b"too long",)
    for wrong in ((b"abc", -1), (b"abc", 4), (b"abc", 0, -1), (b"abc", 1, 3)):
        with pytest.raises(ValueError):
            here.send_bytes(*wrong)
    with pytest.raises(ValueError):
        there.recv_bytes(-1)
    with pytest.raises(ValueError):
        there.recv_bytes_into(bytearray(3), 4)
    with pytest.raises(TypeError):
        here.send_bytes("text")


def test_a_message_that_is_too_long_ends_what_can_be_received(pair):
    here, there = pair
    here.send_bytes(b"too long")
    with pytest.raises(OSError):
        there.recv_bytes(3)
    assert not there.readable and there.writable
    with pytest.raises(OSError):
        there.recv()
    there.send("still")
    assert here.recv() == "still"


def test_poll_and_the_end(pair):
    here, there = pair
    assert not there.poll() and not there.poll(0.01)
    here.send(1)
    assert there.poll() and there.poll(None) and there.poll(-1)
    assert there.recv() == 1
    assert isinstance(there, Connection) and there.fileno() >= 0
    assert there.readable and there.writable and not there.closed
    here.send("before the end")
    here.close()
    here.close()
    assert here.closed
    for refused in (here.recv, here.fileno, lambda: here.send(1), here.poll):
        with pytest.raises(OSError):
            refused()
    assert there.poll(SECONDS)
    assert there.recv() == "before the end"
    with pytest.raises(EOFError):
        there.recv()
    with pytest.raises(OSError):
        while True:
            there.send(1)


def test_one_way():
    receiver, sender = mp.Pipe(duplex=False)
    with receiver, sender:
        assert receiver.readable and not receiver.writable
        assert sender.writable and not sender.readable
        with pytest.raises(OSError):
            receiver.send(1)
        with pytest.raises(OSError):
            sender.recv()


def test_a_long_message_over_a_socket_of_which_only_the_start_comes():
    here, there = socket.socketpair()
    with Connection(there.detach()) as there:
        # It says that it has 64 GiB, for which nobody has memory.
        here.sendall(b"\xff\xff\xff\xff" + (64 << 30).to_bytes(8, "big") + b"some")
        here.close()
        with pytest.raises(OSError):
            there.recv_bytes()


def serve_handles(connection):
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        if isinstance(item, socket.socket):
            item.sendall(b"from the child")
            item.close()
        else:
            item.send(("got", item.recv()))
            item.close()


def test_connections_and_sockets_inside_of_messages(context):
    here, there = context.Pipe()
    child = context.Process(target=serve_handles, args=(there,))
    child.start()
    there.close()
    for first, second in (mp.Pipe(), over_a_socket()):
        here.send(second)
        second.close()
        first.send("hello")
        assert first.recv() == ("got", "hello")
        with pytest.raises(EOFError):
            first.recv()
    mine, other = socket.socketpair()
    here.send(other)
    other.close()
    mine.settimeout(SECONDS)
    assert mine.recv(100) == b"from the child"
    mine.close()
    here.close()
    child.join(SECONDS)
    assert child.exitcode == 0


def answer_once(address, key):
    with Client(address, authkey=key) as connection:
        item = connection.recv()
        item.send("over " + connection.recv())
        item.close()


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET"])
def test_a_connection_over_a_listeners_connection(context, family):
    key = bytes(mp.current_process().authkey)
    with Listener(family=family, authkey=key) as listener:
        child = context.Process(target=answer_once, args=(listener.address, key))
        child.start()
        with listener.accept() as connection:
            for_child, mine = over_a_socket()
            connection.send(for_child)
            connection.send(family)
            assert mine.recv() == "over " + family
            for_child.close()
            mine.close()
        child.join(SECONDS)
        assert child.exitcode == 0


def test_handles():
    for first, second in (mp.Pipe(), over_a_socket()):
        reader, writer = os.pipe()
        # From CPython 3.14 on it waits for who receives.
        sending = threading.Thread(target=reduction.send_handle, args=(first, writer, os.getpid()))
        sending.start()
        got = reduction.recv_handle(second)
        sending.join(SECONDS)
        assert not sending.is_alive()
        os.close(writer)
        for sender, receiver in ((first, second), (second, first)):
            sender.send("still in step")
            assert receiver.recv() == "still in step"
        os.write(got, b"through")
        os.close(got)
        assert os.read(reader, 100) == b"through"
        os.close(reader)
        first.close()
        second.close()


# -- listeners


def test_the_file_of_an_address_goes_with_the_listener(tmp_path):
    path = str(tmp_path / "socket")
    listener = Listener(path)
    assert listener.address == path and os.path.exists(path)
    with pytest.raises(OSError):
        Listener(path)
    assert os.path.exists(path)
    listener.close()
    listener.close()
    assert not os.path.exists(path)
    with pytest.raises(OSError):
        listener.accept()
    with Listener(path):
        pass


def test_addresses():
    with Listener(("localhost", 0)) as listener, Client(listener.address) as client:
        with listener.accept() as accepted:
            assert listener.last_accepted[1] > 0
            client.send(1)
            assert accepted.recv() == 1
    for wrong in (7, 1.5, [], b"path"):
        with pytest.raises(ValueError if wrong in ([], b"path") else TypeError):
            Client(wrong)
    for wrong in ("AF_NONE", "nonsense"):
        with pytest.raises(ValueError):
            Listener(family=wrong)
    with pytest.raises(TypeError):
        Listener(authkey="text")
    with pytest.raises(TypeError):
        Client(("localhost", 1), authkey="text")
    with pytest.raises(OSError):
        Client("/nowhere/at/all")


def test_peers_that_do_not_know_the_key():
    with Listener(authkey=b"key") as listener:
        outcomes = []

        def refuse():
            for _ in range(3):
                try:
                    listener.accept().close()
                except Exception as error:
                    outcomes.append(type(error))

        accepting = threading.Thread(target=refuse)
        accepting.start()
        with pytest.raises(AuthenticationError):
            Client(listener.address, authkey=b"another")
        with socket.socket(socket.AF_UNIX) as hostile:
            hostile.connect(listener.address)
            hostile.sendall(b"\x7f\xff\xff\xff" + bytes(1000))
            assert hostile.recv(1000)
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(listener.address)
        Client(listener.address, authkey=b"key").close()
        accepting.join(SECONDS)
        assert not accepting.is_alive()
        assert outcomes == [AuthenticationError, OSError]
        silent.close()


# -- waiting for many


def sleep_for(seconds):
    time.sleep(seconds)


def test_wait_for_objects_of_all_kinds(context):
    over_pipe, other = mp.Pipe()
    over_socket, another = over_a_socket()
    mine, theirs = socket.socketpair()
    child = context.Process(target=sleep_for, args=(SECONDS,))
    child.start()
    with open(os.devnull) as file:
        objects = [over_pipe, over_socket, mine, child.sentinel]
        assert wait(objects, 0.01) == []
        assert wait(objects, 0) == [] and wait([], 0.01) == []
        other.send(1)
        assert wait(objects) == [over_pipe]
        another.send(2)
        theirs.send(b"x")
        ready = wait(objects, SECONDS)
        assert {id(one) for one in ready} == {id(over_pipe), id(over_socket), id(mine)}
        assert over_pipe.recv() == 1 and over_socket.recv() == 2 and mine.recv(1) == b"x"
        assert wait(objects, 0) == []
        child.kill()
        assert wait(objects, SECONDS) == [child.sentinel]
        other.close()
        assert over_pipe in wait(objects, SECONDS)
        assert file.fileno() >= 0
    child.join(SECONDS)
    for one in (over_pipe, over_socket, another, mine, theirs):
        one.close()


def send_for_ever(connection):
    number = 0
    while True:
        connection.send((number, "x" * (number % 3000)))
        number += 1


def test_a_sender_that_is_killed_at_any_moment(context):
    for _ in range(4):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=send_for_ever, args=(sender,))
        child.start()
        sender.close()
        assert receiver.recv()[0] == 0
        threading.Timer(random.random() / 20, child.kill).start()
        last = 0
        with pytest.raises(EOFError):
            while True:
                number, text = receiver.recv()
                assert number == last + 1 and len(text) == number % 3000
                last = number
        receiver.close()
        child.join(SECONDS)


def test_random_bytes_of_old_peers_are_no_names():
    """What peers before CPython 3.12 send are bytes that may look like a digest's name."""
    from bunshin import _authentication

    key = b"secret"
    challenge = b"{sha1}" + bytes(14)
    answer = hmac.new(key, challenge, "md5").digest()
    assert _authentication.create_response(key, challenge) == answer
    codes = (
        (challenge, hmac.new(key, challenge, "md5").digest())
        for challenge in (b"{sha256}%d" % number for number in itertools.count())
    )
    challenge, code = next(
        (challenge, code) for challenge, code in codes if code[:1] == b"{" and b"}" in code
    )
    _authentication.verify_challenge(key, challenge, code)
    with pytest.raises(mp.AuthenticationError):
        _authentication.verify_challenge(key, challenge + b"x", code)

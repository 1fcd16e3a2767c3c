"""Very long bytes, which go over a connection in pieces."""

import os
import pickle
import random
import signal
import threading
import time

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")
#: From here on, as the native part has it, and no multiple of a piece.
LONG = (256 << 20) + 12345


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def content(len):
    """Bytes none of whose parts are like another."""
    part = random.Random(7).randbytes(1 << 20)
    whole = b"".join(
        number.to_bytes(8, "little") + part[8:] for number in range(len // (1 << 20) + 1)
    )
    return whole[:len]


def finish(child):
    child.join(60)
    assert child.exitcode == 0


def echo(connection):
    while (item := connection.recv()) is not None:
        connection.send(item)


def start(context, work, *args):
    here, there = context.Pipe()
    child = context.Process(target=work, args=(there, *args))
    child.start()
    there.close()
    return here, child


def test_they_arrive_whole(context):
    here, child = start(context, echo)
    for kind in (bytes, bytearray):
        item = kind(content(LONG))
        here.send(item)
        back = here.recv()
        assert type(back) is kind
        assert back == item
        del item, back
    # An ordinary one goes after them.
    here.send([1])
    assert here.recv() == [1]
    here.send(None)
    finish(child)


def test_lengths_around_whole_pieces():
    here, child = start(mp.get_context("fork"), echo)
    for more in (0, 1, (1 << 20) - 1, 1 << 20):
        item = content((256 << 20) + more)
        here.send(item)
        assert here.recv() == item
    here.send(None)
    finish(child)


def test_one_way_ends():
    context = mp.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def read():
        assert reader.recv() == content(LONG)

    child = context.Process(target=read)
    child.start()
    writer.send(content(LONG))
    finish(child)


def test_their_bytes_are_a_pickle():
    here, there = mp.Pipe()
    item = content(LONG)
    thread = threading.Thread(target=there.send, args=(item,))
    thread.start()
    assert pickle.loads(here.recv_bytes()) == item
    thread.join(60)


def send_long(connection):
    connection.send("ready")
    connection.send(bytes(LONG))


def test_a_sender_that_is_killed(context):
    here, child = start(context, send_long)
    assert here.recv() == "ready"
    assert here.poll(30)
    child.kill()
    child.join(60)
    with pytest.raises(OSError, match="gave up"):
        here.recv()
    with pytest.raises(EOFError):
        here.recv()


def never_receive(connection):
    connection.send("ready")
    time.sleep(600)


def test_a_receiver_that_is_killed(context):
    here, child = start(context, never_receive)
    assert here.recv() == "ready"
    timer = threading.Timer(0.3, child.kill)
    timer.start()
    with pytest.raises(BrokenPipeError):
        here.send(bytes(LONG))
    timer.join(60)
    child.join(60)


def test_a_receiver_that_has_no_memory_for_it():
    # More than the addresses that a process may have here.
    import resource

    def receive(connection):
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20),) * 2)
        with pytest.raises(MemoryError):
            connection.recv()
        connection.send("still here")

    here, child = start(mp.get_context("fork"), receive)
    with pytest.raises(BrokenPipeError):
        here.send(bytes(LONG))
    assert here.recv() == "still here"
    finish(child)


class _Interrupted(Exception):
    pass


def _interrupt(*_):
    raise _Interrupted


def test_a_sender_that_is_interrupted():
    here, there = mp.Pipe()
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        # Nobody receives.
        with pytest.raises(_Interrupted):
            here.send(bytes(LONG))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    here.send("after it")
    with pytest.raises(OSError, match="gave up"):
        there.recv()
    assert there.recv() == "after it"


def test_several_senders_at_once():
    here, there = mp.Pipe()
    items = [bytes([number]) * (LONG + number) for number in range(3)]
    threads = [threading.Thread(target=there.send, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    found = sorted(here.recv() for _ in items)
    assert found == items
    for thread in threads:
        thread.join(60)


def test_nothing_is_left_open():
    here, there = mp.Pipe()

    def pass_one():
        thread = threading.Thread(target=there.send, args=(bytes(LONG),))
        thread.start()
        assert len(here.recv()) == LONG
        thread.join(60)

    pass_one()
    before = sorted(os.listdir("/proc/self/fd"))
    pass_one()
    assert sorted(os.listdir("/proc/self/fd")) == before

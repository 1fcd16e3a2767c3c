"""An end that one thread waits at can be given to a process, and watched, by another thread."""

import os
import threading

import pytest

import bunshin as mp

LIMIT = 30
METHODS = ["fork", "spawn", "forkserver"]


def say(connection, what):
    connection.send(what)


def take(connection, answers):
    answers.put(connection.recv_bytes())


def in_thread(function):
    result = []
    thread = threading.Thread(target=lambda: result.append(function()), daemon=True)
    thread.start()
    return thread, result


@pytest.mark.parametrize("method", METHODS)
def test_an_end_is_given_while_a_thread_waits_at_it(method):
    context = mp.get_context(method)
    here, there = context.Pipe()
    thread, result = in_thread(here.recv)
    thread.join(0.1)
    worker = context.Process(target=say, args=(here, "from a child"))
    worker.start()
    assert there.recv() == "from a child"
    worker.join(LIMIT)
    assert worker.exitcode == 0
    there.send("an answer")
    thread.join(LIMIT)
    assert result == ["an answer"]


@pytest.mark.parametrize("method", METHODS)
def test_both_take_what_comes(method):
    context = mp.get_context(method)
    here, there = context.Pipe()
    answers = context.SimpleQueue()
    thread, result = in_thread(here.recv_bytes)
    thread.join(0.1)
    worker = context.Process(target=take, args=(here, answers))
    worker.start()
    for item in (b"1", bytes(10_000_000)):
        there.send_bytes(item)
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert sorted(map(len, result + [answers.get()])) == [1, 10_000_000]
    worker.join(LIMIT)
    assert worker.exitcode == 0


def test_the_descriptor_is_there_while_a_thread_waits():
    here, there = mp.Pipe()
    thread, result = in_thread(here.recv)
    thread.join(0.1)
    # It would stop all threads of the interpreter if it waited.
    assert os.fstat(here.fileno())
    there.send(1)
    thread.join(LIMIT)
    assert result == [1]
    there.send(2)
    assert mp.connection.wait([here], LIMIT) == [here]
    assert here.recv() == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_child_sends_while_a_thread_of_its_parent_waits_for_room(method):
    context = mp.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    item = bytes(1_000)

    def send():
        for _ in range(300):
            sender.send_bytes(item)

    thread, _ = in_thread(send)
    thread.join(0.1)
    assert thread.is_alive(), "it does not fit"
    worker = context.Process(target=say, args=(sender, "from a child"))
    worker.start()
    received = [receiver.recv_bytes() for _ in range(301)]
    assert received.count(item) == 300
    thread.join(LIMIT)
    worker.join(LIMIT)
    assert worker.exitcode == 0

"""A pipe whose memory cannot be had when a message needs it."""

import ctypes
import platform
import struct
import threading

import pytest

import bunshin

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
ENOSPC = 28
FALLOCATE = {"x86_64": 285, "aarch64": 47}


class Filter(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def no_memory_from_now_on():
    """Has the system refuse this thread, and no other, any new shared memory."""
    code = b"".join(
        struct.pack("HBBI", *step)
        for step in [
            (0x20, 0, 0, 0),  # load the number of the call
            (0x15, 0, 1, FALLOCATE[platform.machine()]),
            (0x06, 0, 0, 0x00050000 | ENOSPC),
            (0x06, 0, 0, 0x7FFF0000),
        ]
    )
    memory = ctypes.create_string_buffer(code, len(code))
    program = Filter(len(code) // 8, ctypes.addressof(memory))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(
        PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0
    ):
        pytest.skip("calls of the system cannot be refused here")


def in_full_memory(work):
    """Calls `work` in a thread for which there is no memory; gives what it returned."""
    outcome = []

    def run():
        try:
            no_memory_from_now_on()
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (outcome,) = outcome
    if isinstance(outcome, pytest.skip.Exception):
        raise outcome
    return outcome


pytestmark = pytest.mark.skipif(
    platform.machine() not in FALLOCATE, reason="the number of a call is not known"
)


def failure(work):
    error = in_full_memory(work)
    assert isinstance(error, (OSError, MemoryError)), repr(error)
    return error


def test_making_a_pipe_is_the_error():
    failure(bunshin.Pipe)


@pytest.mark.parametrize("size", [10, 3000])
def test_sending_is_the_error_and_the_pipe_goes_on(size):
    here, there = bunshin.Pipe()
    failures = 0
    with here, there:
        for number in range(200):
            # Of each page, the first message that needs it finds no memory.
            item = (number, bytes(size))
            outcome = in_full_memory(lambda: here.send(item))
            if outcome is not None:
                assert isinstance(outcome, (OSError, MemoryError)), repr(outcome)
                failures += 1
                assert not there.poll(), "nothing of it was sent"
                here.send(item)
            assert there.recv() == item
        there.send("back")
        assert here.recv() == "back"
    # Once all of the ring was used, it is there to stay.
    assert 2 <= failures <= 16


def test_what_was_sent_before_is_received():
    here, there = bunshin.Pipe()
    with here, there:
        for number in range(10):
            here.send(number)
        failure(lambda: here.send(bytes(5000)))
        assert [in_full_memory(there.recv) for _ in range(10)] == list(range(10))
        here.send(bytes(5000))
        assert there.recv() == bytes(5000)


def echo(end):
    with end:
        while (item := end.recv()) is not None:
            end.send(item)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_and_its_parent_find_each_others_pages(method):
    mp = bunshin.get_context(method)
    here, there = mp.Pipe()
    # Some of it is used before the child has it, and some afterwards.
    here.send(bytes(3000))
    assert there.recv() == bytes(3000)
    child = mp.Process(target=echo, args=(there,))
    child.start()
    there.close()
    for size in [1, 5000, 100, 7000, 8000, 3] * 20:
        here.send(bytes(size))
        assert here.recv() == bytes(size)
    here.send(None)
    child.join()
    assert child.exitcode == 0


def test_more_buffers_than_the_first_page_of_their_table_has_places_for():
    here, there = bunshin.Pipe()
    with here, there:
        kept = []
        for number in range(300):
            here.send_bytes(bytes([number % 256]) * 70_000)
            kept.append(there.recv_bytes())
        assert [item[0] for item in kept] == [number % 256 for number in range(300)]

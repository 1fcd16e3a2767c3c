"""Ends: of programs, of their main modules' objects, and of those whose parent is killed."""

import os
import signal
import subprocess
import sys
import time

import bunshin.managers
import pytest
from bunshin import _server

METHODS = ("fork", "spawn", "forkserver")


def begin(path, text, *arguments):
    path.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
    )


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as told:
            return told.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ended(pid, limit=20):
    deadline = time.monotonic() + limit
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


# -- killed parents

FAMILY = """
import os, sys, time
import bunshin as mp

def sleep(sender):
    if sys.argv[2] == "stays":
        os.setsid()
    sender.send(0)
    time.sleep(600)

if __name__ == "__main__":
    context = mp.get_context(sys.argv[1])
    manager = context.Manager()
    receiver, sender = context.Pipe()
    # After the server: what it inherits is not to keep the server.
    child = context.Process(target=sleep, args=(sender,), daemon=sys.argv[2] == "daemon")
    child.start()
    receiver.recv()
    print(manager._process.pid, child.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["daemon", "plain"])
@pytest.mark.parametrize("method", METHODS)
def test_children_and_servers_end_with_a_parent_that_is_killed(method, kind, number, tmp_path):
    program = begin(tmp_path / "program.py", FAMILY, method, kind)
    server, child = map(int, program.stdout.readline().split())
    program.send_signal(number)
    program.communicate(timeout=60)
    assert ended(child) and ended(server)


def test_a_server_is_not_kept_by_a_copy_that_outlives_the_parent(tmp_path):
    program = begin(tmp_path / "program.py", FAMILY, "fork", "stays")
    server, child = map(int, program.stdout.readline().split())
    try:
        program.kill()
        assert ended(server)
        # It has a session of its own.
        assert is_running(child)
    finally:
        os.kill(child, signal.SIGKILL)
        program.communicate(timeout=60)


THREAD = """
import threading, time
import bunshin as mp

if __name__ == "__main__":
    child = mp.get_context("fork").Process(target=time.sleep, args=(1.5,), daemon=True)
    thread = threading.Thread(target=child.start)
    thread.start()
    thread.join()
    child.join(60)
    print(child.exitcode)
"""


def test_a_daemon_is_not_ended_with_the_thread_that_started_it(tmp_path):
    program = begin(tmp_path / "program.py", THREAD)
    out, err = program.communicate(timeout=60)
    assert out == "0\n", err


# -- the end of the interpreter

GLOBALS = """
import sys
import bunshin as mp

class Last:
    def __del__(self):
        print("deleted", flush=True)

def square(n):
    return n * n

if __name__ == "__main__":
    last = Last()
    context = mp.get_context(sys.argv[1])
    if sys.argv[2] == "pool":
        with context.Pool(1) as pool:
            print(pool.map(square, [3]), flush=True)
    elif sys.argv[2] == "left":
        pool = context.Pool(1)
        print(pool.apply_async(square, (3,)).get(), flush=True)
    else:
        with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
            print(executor.submit(square, 3).result(), flush=True)
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("use", ["pool", "left", "executor"])
def test_objects_of_the_main_module_are_deleted_at_the_end(method, use, tmp_path):
    program = begin(tmp_path / "program.py", GLOBALS, method, use)
    out, err = program.communicate(timeout=60)
    assert out.split()[1:] == ["deleted"], out + err


def test_what_a_client_says_at_its_end_is_not_said_for_the_next_one_with_its_number():
    server = bunshin.managers.SyncManager().get_server()
    try:
        one = _server._Session(server, 12345)
        server._sessions.add(one)
        server.leave(_server._Asking(_server._Session(server, 12345), None))
        assert one.has_left
        assert not _server._Session(server, 12345).has_left
    finally:
        server.listener.close()

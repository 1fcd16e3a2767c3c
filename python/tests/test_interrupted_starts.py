"""Ctrl-C while processes are being started: one traceback, and nobody left."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

METHODS = ("fork", "spawn", "forkserver")

STARTS = """
import sys
import bunshin as mp

def same(n):
    return n

if __name__ == "__main__":
    context = mp.get_context(sys.argv[1])
    print("begun", flush=True)
    while True:
        with context.Pool(4) as pool:
            pool.map(same, range(8))
"""

COPY = """
import ctypes, functools, os, signal
import bunshin as mp

def nothing():
    pass

if __name__ == "__main__":
    # The last thing that happens before the copy goes on is that it is interrupted.
    os.register_at_fork(after_in_child=functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT))
    child = mp.get_context("fork").Process(target=nothing)
    try:
        child.start()
        child.join()
        print(child.exitcode, flush=True)
    except KeyboardInterrupt:
        print("a copy goes on as its parent", flush=True)
"""


def in_group(group):
    """The processes of a process group that have not ended."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as told:
                    state, _, number = told.read().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(number) == group and state not in "ZX":
                found.append(int(name))
    return found


def interrupt(path, *arguments):
    """Runs a program, interrupts it and all of its children; gives its errors, or nothing if the
    interpreter has ignored the interrupt."""
    program = subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        start_new_session=True,
    )
    try:
        assert program.stdout.readline() == "begun\n"
        time.sleep(0.05 + random.random() / 4)
        os.killpg(program.pid, signal.SIGINT)
        try:
            _, err = program.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            _, err = program.communicate()
            # The interpreter drops what is raised where nobody can be told, as in a weak
            # reference's callback: that interrupt came to nothing, and the program goes on.
            assert "Exception ignored in" in err and "KeyboardInterrupt" in err, err
            return None
        deadline = time.monotonic() + 20
        while in_group(program.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert in_group(program.pid) == []
    finally:
        try:
            os.killpg(program.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return err


@pytest.mark.parametrize("method", METHODS)
def test_pools(method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(STARTS)
    for _ in range(6):
        err = interrupt(path, method)
        assert err is None or err.count("Traceback") == 1, err


def test_a_copy_that_is_interrupted_does_not_go_on_as_its_parent(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(COPY)
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
    )
    assert done.stdout == "1\n" and "Traceback" not in done.stderr, done.stdout + done.stderr

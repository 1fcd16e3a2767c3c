"""A name of shared memory that several memories have had, one after the other."""

import os
import subprocess
import sys
import time

from bunshin.shared_memory import SharedMemory

#: Makes a memory, loses its name to another one, and does what it is told with the name.
_PROGRAM = """
import os, sys
from bunshin.shared_memory import SharedMemory
name, then = sys.argv[1:]
first = SharedMemory(name=name, create=True, size=64)
os.remove("/dev/shm/" + name)
second = SharedMemory(name=name, create=True, size=64)
first.unlink()
assert not os.path.exists("/dev/shm/" + name)
other = SharedMemory(name=name + "-other", create=True, size=64)
if then == "again":
    third = SharedMemory(name=name, create=True, size=64)
print("ready", flush=True)
sys.stdin.read()
"""


def path(name):
    return f"/dev/shm/{name}"


def gone(name):
    deadline = time.monotonic() + 30
    while os.path.exists(path(name)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not os.path.exists(path(name))


def after_a_kill(name, then):
    """Runs the program, does `then` once it is ready, and kills it."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, name, then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield
        process.kill()
    # It goes with the program as well, and is removed after the others.
    assert gone(name + "-other")


def test_a_name_that_was_given_again_goes_with_the_program():
    name = f"psm_again_{os.getpid()}"
    for _ in after_a_kill(name, "again"):
        assert os.path.exists(path(name))
    assert gone(name)


def test_a_name_that_somebody_else_has_by_now_stays():
    name = f"psm_others_{os.getpid()}"
    for _ in after_a_kill(name, "leave"):
        memory = SharedMemory(name=name, create=True, size=64, track=False)
    assert os.path.exists(path(name))
    memory.close()
    memory.unlink()

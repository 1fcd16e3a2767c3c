"""Signals whose handlers raise, at the moment at which a child begins."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, threading
import bunshin as mp


class Stop(BaseException):
    pass


def handler(number, frame):
    raise Stop


def fork(real=os.fork):
    pid = real()
    if pid == 0 and {is_first}:
        # As `terminate` does at once, or the system when a group of processes is to end.
        os.kill(os.getpid(), signal.{name})
    return pid


def work():
    os.kill(os.getpid(), signal.{name})
    threading.Event().wait(60)


signal.signal(signal.{name}, handler)
os.fork = fork
main = os.getpid()
child = mp.get_context("fork").Process(target=work)
try:
    child.start()
finally:
    if os.getpid() != main:
        print("a child goes on as its parent", flush=True)
child.join()
print(child.exitcode, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGALRM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("is_first", [True, False])
def test_handler_that_raises_ends_the_child(name, is_first):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name, is_first=is_first)],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert run.stdout == "1\n", run.stderr

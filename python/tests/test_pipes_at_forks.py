"""Pipes that come to be, or to be used, at the very moment of a fork."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os

made = []
hook = None


def before():
    if hook:
        hook()


# What is registered first runs last: as another thread would, between what the package does before
# a fork, and the fork.
os.register_at_fork(before=before)

import bunshin as mp


def nothing():
    pass


def make():
    made[:] = mp.Pipe({duplex})


def begin_to_use():
    here, there = made
    there.send(1)
    assert here.recv() == 1


def fork():
    child = mp.get_context("fork").Process(target=nothing)
    child.start()
    child.join()
    assert child.exitcode == 0


make()
hook = {hook}
fork()
hook = None
for _ in range(2):
    here, there = made
    there.send(2)
    assert here.recv() == 2
    fork()
there.close()
try:
    here.recv()
except EOFError:
    print("all is well")
"""


@pytest.mark.parametrize("hook", ["make", "begin_to_use", "None"])
@pytest.mark.parametrize("duplex", [False, True])
def test_a_child_that_ends_leaves_its_parents_pipe_alone(hook, duplex):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(hook=hook, duplex=duplex)],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert run.stdout == "all is well\n", run.stderr

"""Forked children: what they begin with, how they end, and what their parent has of them."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import bunshin as mp
from bunshin import connection

ctx = mp.get_context("fork")


def look_at_input(sender):
    sender.send((sys.stdin.read(), sys.stdin.fileno(), sys.stdin.closed, os.read(0, 1)))


def have_child_look(sender, is_closed):
    if is_closed:
        sys.stdin.close()
    child = ctx.Process(target=look_at_input, args=(sender,))
    child.start()
    child.join()


def leave_child_behind(receiver, sender):
    if os.fork() == 0:
        os.close(sender)
        # Until the test is over.
        os.read(receiver, 1)
        os._exit(0)


def raise_(error):
    raise error


def nothing():
    pass


def program(text, **more):
    """Runs a program; gives what it printed."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    run = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        **more,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


def test_the_standard_input_is_empty():
    receiver, sender = ctx.Pipe(False)
    child = ctx.Process(target=look_at_input, args=(sender,))
    child.start()
    child.join()
    text, number, is_closed, more = receiver.recv()
    assert (text, is_closed, more) == ("", False, b"")
    assert number >= 0


@pytest.mark.parametrize("is_closed", (False, True))
def test_the_standard_input_of_a_childs_child_is_empty(is_closed):
    receiver, sender = ctx.Pipe(False)
    child = ctx.Process(target=have_child_look, args=(sender, is_closed))
    child.start()
    child.join()
    assert child.exitcode == 0
    text, _, is_closed, more = receiver.recv()
    assert (text, is_closed, more) == ("", False, b"")


LOOK = """
import os, sys
import bunshin as mp

def look():
    print(repr(sys.stdin.read() if sys.stdin else None), flush=True)

{before}
for _ in range(2):
    child = mp.get_context("fork").Process(target=look)
    child.start()
    child.join()
{after}
"""


def test_the_parent_keeps_its_input():
    shown, _ = program(LOOK.format(before="", after="look()"), input="a line for the parent\n")
    assert shown.splitlines() == ["''", "''", repr("a line for the parent\n")]


@pytest.mark.parametrize("before", ("os.close(0)", "sys.stdin = None", "sys.stdin.close()"))
def test_a_parent_without_input(before):
    shown, errors = program(LOOK.format(before=before, after=""), input="not for children\n")
    expected = "None" if "None" in before else "''"
    assert (shown.splitlines(), errors) == ([expected] * 2, "")


def test_a_sentinel_is_ready_though_a_childs_child_lives():
    receiver, sender = os.pipe()
    child = ctx.Process(target=leave_child_behind, args=(receiver, sender))
    child.start()
    assert connection.wait([child.sentinel], 20) == [child.sentinel]
    child.join(20)
    assert child.exitcode == 0
    os.close(receiver)
    os.close(sender)


@pytest.mark.parametrize(
    "error, code",
    (
        (SystemExit(), 0),
        (SystemExit(7), 7),
        (SystemExit(True), 1),
        (SystemExit("why"), 1),
        (ValueError("why"), 1),
        (KeyboardInterrupt("why"), 1),
    ),
)
def test_how_a_child_ends(error, code, capfd):
    child = ctx.Process(target=raise_, args=(error,), name="Chatty")
    child.start()
    child.join()
    assert child.exitcode == code
    shown = capfd.readouterr().err
    if isinstance(error, SystemExit):
        assert shown == ("why\n" if error.code == "why" else "")
    else:
        assert shown.startswith("Process Chatty:\nTraceback")
        assert type(error).__name__ in shown and "why" in shown


def test_somebody_elses_bootstrap_is_run(capfd):
    """Programs that measure coverage put their own in this place."""
    process = multiprocessing.process.BaseProcess
    before = process._bootstrap

    def bootstrap(self, *args, **named):
        os.write(2, b"mine\n")
        return before(self, *args, **named)

    process._bootstrap = bootstrap
    try:
        child = ctx.Process(target=nothing)
        child.start()
        child.join()
    finally:
        process._bootstrap = before
    assert child.exitcode == 0
    assert capfd.readouterr().err == "mine\n"


def test_children_that_nobody_collects():
    text = """
import signal
import bunshin as mp

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(20):
    child = mp.get_context("fork").Process(target=int)
    child.start()
    child.join(20)
    assert not child.is_alive() or child._popen.poll() is None
print("done")
"""
    assert program(text)[0] == "done\n"


def descriptors():
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left():
    ctx.Process(target=nothing).run()
    before = descriptors()
    for is_closed in (True, False) * 5:
        child = ctx.Process(target=nothing)
        child.start()
        child.join()
        if is_closed:
            child.close()
    del child
    assert descriptors() == before


def forget_siblings(siblings, sender):
    number = siblings[0].sentinel
    os.close(number)
    # This number is in use for something else now.
    kept = os.open(os.devnull, os.O_RDONLY)
    os.dup2(kept, number)
    siblings.clear()
    gc.collect()
    os.fstat(number)
    sender.send("still there")


def test_a_copy_leaves_the_sentinels_of_its_parent_alone():
    receiver, sender = ctx.Pipe(False)
    sibling = ctx.Process(target=time.sleep, args=(600,))
    sibling.start()
    siblings = [sibling]
    child = ctx.Process(target=forget_siblings, args=(siblings, sender))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert receiver.poll(10) and receiver.recv() == "still there"
    sibling.kill()
    sibling.join()
    assert sibling.exitcode == -signal.SIGKILL


def test_no_child_is_left_where_there_is_no_descriptor_for_it():
    text = """
import os, resource, time
import bunshin as mp

context = mp.get_context("fork")
first = context.Process(target=int)
first.start()
first.join()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
child = context.Process(target=time.sleep, args=(600,))
try:
    child.start()
except OSError as error:
    print(error.errno)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
for fd in held:
    os.close(fd)
child = context.Process(target=int)
child.start()
child.join()
print(child.exitcode)
"""
    assert program(text)[0].split("\n") == ["24", "no child", "0", ""]

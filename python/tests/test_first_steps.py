"""What forked children begin and end with: beside those of the interpreter's own, and the same."""

import os
import re
import subprocess
import sys

import pytest

#: Each of these runs in a program of its own, once with either package, and prints the same.
SCENARIOS = {
    "identity": """
def look():
    own, parent = mp.current_process(), mp.parent_process()
    tell(own.name, own.daemon, own.pid == os.getpid(), own is child, mp.active_children())
    tell(parent.name, parent.pid == os.getppid(), parent.is_alive(), parent.ident == parent.pid)
    tell(type(parent).__name__, parent.exitcode, type(own.authkey).__name__)
    tell(threading.main_thread().native_id == os.getpid(), threading.active_count())
    tell(mp.get_start_method(), [mp.get_context("fork").Process().name for _ in range(2)])
    tell([name for name in os.environ if "BUNSHIN" in name])
    grandchild = mp.get_context("fork").Process(target=tell, args=("a child's child",))
    grandchild.start()
    grandchild.join()
    tell(grandchild.name, grandchild.exitcode, len(mp.active_children()))

sibling = mp.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
sibling.start()
mp.current_process().name = "Renamed"
start(look, name="Named")
sibling.kill()
""",
    "input": """
def look():
    tell(sys.stdin.read(), sys.stdin.readline(), list(sys.stdin), sys.stdin.closed)
    tell(sys.stdin.encoding, sys.stdin.mode, sys.stdin.isatty(), sys.stdin.readable())
    tell(sys.stdin.writable(), sys.stdin.seekable(), sys.stdin.buffer.read(3), sys.stdin.errors)
    tell(sys.stdin.seek(0), sys.stdin.tell(), sys.__stdin__.closed, sys.stdin is sys.__stdin__)
    tell(os.fstat(sys.stdin.fileno()).st_rdev == os.stat(os.devnull).st_rdev)
    tell(type(sys.stdin).__name__, type(sys.stdin.buffer).__name__, sys.stdin.line_buffering)
    # Its own children still have the input that was given.
    subprocess.run([sys.executable, "-c", "import sys; print(sys.stdin.read())"])
    try:
        input()
    except EOFError as error:
        tell("nothing to be read", *error.args)
    sys.stdin.close()
    try:
        sys.stdin.read()
    except ValueError as error:
        tell(*error.args)

start(look)
""",
    "finalizers": """
def look():
    util.Finalize(None, tell, args=("low",), exitpriority=-5)
    util.Finalize(None, tell, args=("high",), exitpriority=5)
    atexit.register(tell, "at exit")
    global kept
    kept = util.Finalize(tell, tell, args=("held",), exitpriority=1)
    tell(util.is_exiting())

util.Finalize(None, tell, args=("the parent's",), exitpriority=3)
atexit.register(tell, "at the parent's exit")
start(look)
""",
    "followers": """
class Follower:
    def told(self):
        tell("told", mp.current_process().name, sys.stdin.read(), mp.parent_process() is not None)

follower = Follower()
util.register_after_fork(follower, Follower.told)
start(tell, "first", name="One")
del follower
start(tell, "second")
""",
    "threads": """
def look():
    def late():
        time.sleep(0.3)
        tell("the thread has ended", threading.main_thread().is_alive())
    threading.Thread(target=late).start()
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    tell("the program has ended")

start(look)
""",
    "children of a child": """
def look():
    mp.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True).start()
    mp.get_context("fork").Process(target=later).start()
    tell(len(mp.active_children()))

def later():
    time.sleep(0.3)
    tell("joined")

start(look)
""",
    "log": """
def look():
    util.get_logger().warning("%s", "in the child")

util.log_to_stderr(10)
start(look, name="Logged")
""",
    "log and exit": """
util.log_to_stderr(20)
start(sys.exit, 4, name="Logged")
""",
    "streams": """
def look():
    print("not written out")
    print("nor this", file=sys.stderr, end="")
    sys.stdout.write("or this")

start(look)
""",
    "streams closed": """
def look():
    sys.stdout.close()
    sys.stderr = None

start(look)
""",
    "an error that cannot be told": """
def look():
    def late():
        time.sleep(0.3)
        tell("the thread has ended")
    threading.Thread(target=late).start()
    sys.stderr = None
    raise LookupError("why")

start(look)
""",
    "a word that cannot be told": """
def look():
    sys.stderr.close()
    sys.exit("why")

start(look)
""",
    "functions put in the place of others": """
import multiprocessing.util
before = threading._shutdown

def shut_down():
    tell("the threads are joined")
    before()

start(tell, "first")
threading._shutdown = shut_down
start(tell, "second")
threading._shutdown = before
""",
    "a stream that fails": """
class Full:
    def write(self, text): pass
    def flush(self): raise ValueError("full")

def look():
    sys.stdout = Full()

start(look)
""",
    "an error in a finalizer": """
def look():
    util.Finalize(None, divide, exitpriority=1)

def divide():
    1 / 0

start(look)
""",
    "a finalizer that exits": """
def look():
    util.Finalize(None, sys.exit, args=(9,), exitpriority=1)

start(look)
""",
    "an error and a finalizer that is interrupted": """
def look():
    util.Finalize(None, interrupt, exitpriority=1)
    raise LookupError("why")

def interrupt():
    raise KeyboardInterrupt("meanwhile")

start(look)
""",
    "an error and a finalizer": """
def look():
    util.Finalize(None, tell, args=("finalized",), exitpriority=1)
    raise LookupError("why")

start(look)
""",
    "an error of a name": """
def look():
    raise LookupError("Wörter")

start(look, name="Prozeß %s")
""",
    "errors in a row": """
def look():
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise LookupError("why") from error

start(look)
""",
    "a group of errors": """
def look():
    raise ExceptionGroup("several", [ValueError(1), TypeError(2)])

start(look)
""",
    "hooks": """
def look():
    sys.excepthook = lambda *error: tell("not called")
    1 / 0

start(look)
""",
    "a subclass": """
class Own(mp.get_context("fork").Process):
    def run(self):
        tell("own", self.name, self.exitcode)
        super().run()
        sys.exit(3)

child = Own(target=tell, args=("target",), kwargs={"sep": "-"})
child.start()
child.join()
tell(child.exitcode)
""",
    "a bootstrap of its own": """
class Own(mp.get_context("fork").Process):
    def _bootstrap(self, *args, **named):
        tell("before")
        return super()._bootstrap(*args, **named) + 5

child = Own(target=tell, args=("target",))
child.start()
child.join()
tell(child.exitcode)
""",
    "a default start method": """
mp.set_start_method("spawn")
def look():
    tell(mp.get_start_method(), type(mp.current_process()).__name__)

start(look)
""",
    "daemons": """
def look():
    try:
        mp.get_context("fork").Process(target=tell).start()
    except AssertionError as error:
        tell(*error.args)

child = mp.get_context("fork").Process(target=look, daemon=True)
child.start()
child.join()
tell(child.exitcode)
""",
    "a thread's child": """
def look():
    tell(threading.current_thread() is threading.main_thread(), threading.active_count())
    tell(threading.main_thread().native_id == os.getpid())

thread = threading.Thread(target=start, args=(look,))
thread.start()
thread.join()
""",
}
EXITS = ("None", "0", "7", "256", "-1", "True", "False", "'why'", "''", "3.5", "(1, 2)", "b'bytes'")
for given in EXITS:
    SCENARIOS[f"exit with {given}"] = f"start(sys.exit, {given})"

BEGINNING = """
import atexit, os, subprocess, sys, threading, time
import {package} as mp
from {package} import util

def tell(*values, sep=" "):
    os.write(1, (sep.join(map(str, values)) + "\\n").encode())

def start(target, *args, **named):
    global child
    child = mp.get_context("fork").Process(target=target, args=args, **named)
    child.start()
    child.join(60)
    tell("exit code", child.exitcode)
"""


def run(text, package):
    """What a program prints: on its output, and on its standard error."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGINNING.format(package=package) + text],
        capture_output=True,
        text=True,
        timeout=120,
        input="for the parent",
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    return ran.stdout, ran.stderr, ran.returncode


def without_frames(text):
    """A traceback without where it went through, which is not the same in both."""
    lines = re.sub("0x[0-9a-f]+", "0x", text).splitlines()
    kept = [line for line in lines if not line.lstrip(" |").startswith(("File ", "^", "~", "self."))]
    return [line for line in kept if not line.startswith("    ")]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_children_live_as_those_of_the_interpreters_own(scenario):
    ours, theirs = (run(SCENARIOS[scenario], name) for name in ("bunshin", "multiprocessing"))
    assert ours[0] == theirs[0]
    assert without_frames(ours[1]) == without_frames(theirs[1])
    assert ours[2] == theirs[2] == 0


def test_what_is_printed_of_an_error_has_its_place():
    text = "def look():\n    raise LookupError('why')\n\nstart(look, name='Lost')\n"
    shown = run(text, "bunshin")[1]
    assert shown.startswith("Process Lost:\nTraceback (most recent call last):\n")
    assert "in look\n" in shown and shown.endswith("LookupError: why\n")


def test_a_child_that_is_forked_by_hand_starts_one():
    text = """
pid = os.fork()
if pid == 0:
    start(lambda: tell(mp.parent_process().pid == os.getppid(), os.getppid() == by_hand[0]))
    os._exit(0)
"""
    text = "by_hand = []\nbefore = os.getpid()\n" + text.replace(
        "    start(", "    by_hand.append(os.getpid())\n    start("
    )
    text += "os.waitpid(pid, 0)\n"
    assert run(text, "bunshin")[0] == "True True\nexit code 0\n"


def test_the_scenarios_say_something():
    found = {name: run(SCENARIOS[name], "bunshin")[0] for name in ("identity", "exit with 7")}
    assert found["exit with 7"] == "exit code 7\n"
    assert "Renamed True True True" in found["identity"]

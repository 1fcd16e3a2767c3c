"""Processes as their users meet them, under each start method."""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import bunshin as mp
from bunshin import connection

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def nothing():
    pass


def sleep():
    time.sleep(600)


def leave(code):
    sys.exit(code)


def refuse():
    raise ValueError("not this one")


def tell(sender):
    own, parent = mp.current_process(), mp.parent_process()
    sender.send((own.name, own.daemon, bytes(own.authkey), parent.pid, parent.name))


def wait_for_interrupt(sender):
    try:
        sender.send("ready")
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(3)


def watch_parent(sender):
    parent = mp.parent_process()
    sender.send((os.getpid(), parent.is_alive()))
    parent.join(20)
    sender.send((os.getpid(), parent.is_alive()))
    time.sleep(600)


def have_child(method, sender):
    child = mp.get_context(method).Process(target=watch_parent, args=(sender,))
    child.start()
    time.sleep(600)


def gone(pid, seconds=20):
    """Whether a process that is nobody's child here ends in that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


class ForkCounter(mp.get_context("fork").Process):
    def run(self):
        leave(7)


class SpawnCounter(mp.get_context("spawn").Process):
    def run(self):
        leave(7)


class ForkServerCounter(mp.get_context("forkserver").Process):
    def run(self):
        leave(7)


@pytest.mark.parametrize("own", [ForkCounter, SpawnCounter, ForkServerCounter])
def test_a_subclass_runs_its_run(own):
    child = own()
    child.start()
    child.join(20)
    assert child.exitcode == 7
    assert isinstance(child, mp.process.BaseProcess)


def test_exit_codes_say_how_it_ended(context):
    ends = ((nothing, (), 0), (leave, (5,), 5), (leave, ("x",), 1), (refuse, (), 1))
    for target, args, code in ends:
        child = context.Process(target=target, args=args)
        child.start()
        child.join(20)
        assert child.exitcode == code


@pytest.mark.parametrize(
    ("end", "number"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)]
)
def test_it_is_ended_from_outside(context, end, number):
    child = context.Process(target=sleep)
    assert child.exitcode is None and child.pid is None
    child.start()
    assert child.is_alive() and child in mp.active_children()
    assert connection.wait([child.sentinel], 0) == []
    getattr(child, end)()
    assert connection.wait([child.sentinel], 20) == [child.sentinel]
    child.join(20)
    assert child.exitcode == -number and not child.is_alive()
    assert child not in mp.active_children()


def test_an_interrupt_is_raised_in_the_child(context):
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=wait_for_interrupt, args=(sender,))
    child.start()
    assert receiver.recv() == "ready"
    child.interrupt()
    child.join(20)
    assert child.exitcode == 3


def test_a_child_knows_itself_and_its_parent(context):
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=tell, args=(sender,), name="Mine", daemon=True)
    child.authkey = b"secret"
    child.start()
    parent = mp.current_process()
    assert receiver.recv() == ("Mine", True, b"secret", os.getpid(), parent.name)
    child.join(20)


def test_a_closed_process_cannot_be_asked(context):
    child = context.Process(target=nothing)
    child.start()
    with pytest.raises(ValueError):
        blocked = context.Process(target=sleep)
        blocked.start()
        try:
            blocked.close()
        finally:
            blocked.kill()
            blocked.join(20)
    child.join(20)
    child.close()
    for ask in (lambda: child.pid, child.is_alive, child.join, child.terminate):
        with pytest.raises(ValueError):
            ask()


def leave_mark(path):
    atexit.register(os.mkdir, path)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_a_child_registers_for_its_exit_is_run(method, tmp_path):
    path = str(tmp_path / "mark")
    child = mp.get_context(method).Process(target=leave_mark, args=(path,))
    child.start()
    child.join(20)
    assert child.exitcode == 0 and os.path.isdir(path)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_sees_its_parent_end_and_ends_itself(method):
    receiver, sender = mp.Pipe(duplex=False)
    child = mp.get_context(method).Process(target=have_child, args=(method, sender))
    child.start()
    pid, is_alive = receiver.recv()
    assert is_alive
    child.kill()
    child.join(20)
    assert receiver.poll(20)
    assert receiver.recv() == (pid, False)
    assert gone(pid)


def say_and_sleep(sender, detached):
    if detached:
        os.setsid()
    sender.send(os.getpid())
    time.sleep(600)


def have_child_of_a_thread(method, sender, detached):
    child = mp.get_context(method).Process(target=say_and_sleep, args=(sender, detached))
    thread = threading.Thread(target=child.start)
    thread.start()
    thread.join()
    # Longer than a child is left that has lost its parent.
    time.sleep(1.5)
    sender.send(child.is_alive())
    time.sleep(600)


@pytest.mark.parametrize("detached", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_stays_when_the_thread_ends_that_started_it(method, detached):
    receiver, sender = mp.Pipe(duplex=False)
    context = mp.get_context(method)
    child = context.Process(target=have_child_of_a_thread, args=(method, sender, detached))
    child.start()
    pid, is_alive = receiver.recv(), receiver.recv()
    assert is_alive
    child.kill()
    child.join(20)
    if detached:
        # One in a session of its own is meant to go on by itself.
        assert not gone(pid, 1.5)
        os.kill(pid, signal.SIGKILL)
    assert gone(pid)


def run(tmp_path, text, *arguments, **options):
    program = tmp_path / "program.py"
    program.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        **options,
    )


LEAVES_CHILDREN = """
import sys, time
import bunshin as mp

def sleep():
    time.sleep(600)

if __name__ == "__main__":
    child = mp.get_context(sys.argv[1]).Process(target=sleep, daemon=True)
    child.start()
    print(child.pid, flush=True)
"""


@pytest.mark.parametrize("method", METHODS)
def test_daemons_end_with_the_interpreter(tmp_path, method):
    program = run(tmp_path, LEAVES_CHILDREN, method)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert gone(int(out))


INTERRUPTED = """
import os, sys, time
import bunshin as mp

def nap(number):
    time.sleep(600)

if __name__ == "__main__":
    with mp.get_context(sys.argv[1]).Pool(2) as pool:
        pool.map(abs, range(4))
        print(*[worker.pid for worker in pool._pool], flush=True)
        pool.map(nap, range(8), chunksize=1)
"""


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_leaves_one_traceback_and_no_children(tmp_path, method):
    program = run(tmp_path, INTERRUPTED, method, start_new_session=True)
    workers = [int(pid) for pid in program.stdout.readline().split()]
    time.sleep(0.3)
    # As a terminal does it: to all of them.
    os.killpg(program.pid, signal.SIGINT)
    _, err = program.communicate(timeout=60)
    assert program.returncode != 0
    assert err.count("Traceback (most recent call last)") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert len(workers) == 2 and all(gone(pid) for pid in workers)


PRELOADS = """
import sys
import threading
import bunshin as mp

def is_loaded(name, sender):
    sender.send(name in sys.modules)

if __name__ == "__main__":
    mp.set_forkserver_preload(["colorsys"])
    receiver, sender = mp.Pipe(duplex=False)
    mp.get_context("forkserver").Process(target=is_loaded, args=("colorsys", sender)).start()
    print(receiver.recv())
"""


def test_the_forkserver_loads_what_it_is_told_to(tmp_path):
    out, err = run(tmp_path, PRELOADS).communicate(timeout=60)
    assert out == "True\n", err


UNDECIDED = """
import bunshin as mp

def nothing():
    pass

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        child = mp.get_context(method).Process(target=nothing)
        child.start()
        child.join()
        print(method, child.exitcode, mp.get_start_method(allow_none=True))
    mp.set_start_method("fork")
    print(mp.get_start_method())
"""


def test_a_child_of_some_method_leaves_the_default_open(tmp_path):
    out, err = run(tmp_path, UNDECIDED).communicate(timeout=60)
    assert out == "fork 0 None\nspawn 0 None\nforkserver 0 None\nfork\n", err


def test_the_modules_functions_are_there():
    assert mp.get_all_start_methods()[0] in METHODS
    mp.freeze_support()
    mp.set_forkserver_preload(["json"])
    mp.set_forkserver_preload([])
    for error in (mp.BufferTooShort, mp.AuthenticationError, mp.TimeoutError):
        assert issubclass(error, mp.ProcessError)

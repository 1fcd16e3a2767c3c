"""What `WorkerLost` says of a worker's end, under each start method."""

import contextlib
import ctypes
import faulthandler
import io
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import bunshin as mp
from bunshin import _native
from bunshin.executor import TaskLost

METHODS = ("fork", "spawn", "forkserver")
#: Bytes of the end that are kept at least.
KEPT = 32 << 10


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


@pytest.fixture
def no_handler():
    """pytest's own handler of crashes, which forked workers would have, is not there."""
    was_there = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if was_there:
        faulthandler.enable(2)


def lost(context, function, *args, initializer=None, **kwargs):
    """The exception of a task whose worker does not survive it."""
    with context.Pool(1, initializer) as pool:
        with pytest.raises(mp.WorkerLost) as raised:
            pool.apply(function, args, kwargs)
        assert pool.apply(abs, (-1,)) == 1
    return raised.value


# -- what tasks do


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def say_and_leave(*lines):
    for line in lines:
        print(line, file=sys.stderr)
    os._exit(3)


def crash_in_c():
    ctypes.string_at(0)


def abort():
    os.abort()


def raw_bytes():
    os.write(_native.words_descriptor(), b"one\n\xff\xfe two\n")
    sys.stderr.write("half a pair: \udcff\n")
    os._exit(1)


def write_until_killed(seconds):
    threading.Timer(seconds, kill).start()
    for number in range(10**9):
        print(f"line {number} {'x' * (number % 70)}.", file=sys.stderr)


# -- how it ended


def test_a_killed_worker(context):
    error = lost(context, kill)
    assert (error.exitcode, error.out_of_memory, error.stderr) == (-9, False, "")
    assert error.pid != os.getpid() and f"pid {error.pid}" in str(error)
    assert 1 << 20 < error.peak_memory < 1 << 40
    assert "SIGKILL" in str(error) and "MiB" in str(error)
    assert "last words" not in str(error) and "out of memory" not in str(error)


def test_what_it_said_last(context):
    error = lost(context, say_and_leave, "the disk is full", "no more of it")
    assert error.exitcode == 3
    assert error.stderr == "the disk is full\nno more of it"
    assert str(error).endswith("its last words:\nthe disk is full\nno more of it")


def test_text_that_was_not_flushed(context):
    def say():
        sys.stderr.write("no line yet")
        kill()

    assert lost(context, say).stderr == "no line yet"


def test_many_words_are_cut(context):
    lines = [f"line {number}" for number in range(1000)]
    error = lost(context, say_and_leave, *lines)
    assert error.stderr.splitlines() == lines
    assert str(error).splitlines()[-10:] == lines[-10:]
    assert "line 989" not in str(error)


def test_a_mebibyte_of_words_is_bounded(context):
    error = lost(context, say_and_leave, "x" * (1 << 20), *["y" * 99] * 1000, "the end")
    assert KEPT // 2 < len(error.stderr) <= KEPT
    assert error.stderr.endswith("y\nthe end")
    assert len(str(error)) < 2000
    error = lost(context, say_and_leave, "x" * (1 << 20))
    assert set(error.stderr) == {"x"} and len(error.stderr) <= KEPT


def test_bytes_that_are_no_text(context):
    error = lost(context, raw_bytes)
    assert error.stderr == "one\n\ufffd\ufffd two\nhalf a pair: \\udcff"


@pytest.mark.parametrize("seed", range(3))
def test_killed_while_it_writes(context, seed):
    error = lost(context, write_until_killed, random.Random(seed).uniform(0.01, 0.1))
    lines = error.stderr.splitlines()
    numbers = [int(line.split()[1]) for line in lines[:-1]]
    assert all(line == f"line {n} {'x' * (n % 70)}." for n, line in zip(numbers, lines))
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


# -- crashes


@pytest.mark.parametrize("function, exitcode", [(crash_in_c, -11), (abort, -6)])
def test_a_crash_names_its_place(context, no_handler, function, exitcode):
    error = lost(context, function)
    assert error.exitcode == exitcode
    for text in (error.stderr, str(error)):
        assert "Fatal Python error: " in text
        assert f" in {function.__name__}\n" in text and "test_pool_lost.py" in text


def deep(depth):
    return deep(depth - 1) if depth else crash_in_c()


def test_a_deep_crash_is_told_from_its_beginning(context, no_handler):
    error = lost(context, deep, 300)
    assert "in string_at" in str(error) and "in crash_in_c" in str(error)
    assert len(str(error).splitlines()) < 15
    assert error.stderr.count("in deep") > 50


def crash_beside_others():
    for _ in range(20):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    crash_in_c()


def test_only_the_thread_that_crashed_is_told_of(context, no_handler):
    error = lost(context, crash_beside_others)
    assert "in crash_beside_others" in str(error)
    assert len(error.stderr.splitlines()) < 120


def crash_with_own_handler(path):
    with open(path, "w") as file:
        faulthandler.enable(file)
        crash_in_c()


def test_a_handler_of_the_programs_own_stays(context, no_handler, tmp_path):
    error = lost(context, crash_with_own_handler, str(tmp_path / "report"))
    assert error.stderr == ""
    assert "crash_in_c" in (tmp_path / "report").read_text()


def run(tmp_path, program, *flags, method="fork", **kwargs):
    """Runs a program; gives what it prints, and what it writes to its standard error."""
    path = tmp_path / "program.py"
    path.write_text(PRELUDE + textwrap.dedent(program))
    words = [sys.executable, *flags, str(path), method]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


PRELUDE = """\
import ctypes, logging, os, sys, warnings
import bunshin as mp

def crash():
    ctypes.string_at(0)

def main(work, *args):
    with mp.get_context(sys.argv[1]).Pool(1) as pool:
        try:
            pool.apply(work, args)
        except mp.WorkerLost as error:
            return error
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_handler_that_was_asked_for_stays(tmp_path, method, by):
    program = """
    if __name__ == "__main__":
        print(repr(main(crash).stderr))
    """
    flags = ["-X", "faulthandler"] if by == "flag" else []
    env = dict(os.environ, PYTHONFAULTHANDLER="1" if by == "variable" else "")
    out, err = run(tmp_path, program, *flags, method=method, env=env)
    assert out == "''\n"
    assert "Fatal Python error" in err and "in crash" in err


# -- the stream


@pytest.mark.parametrize("method", METHODS)
def test_the_standard_error_is_as_it_was(tmp_path, method):
    program = """
    # Made before there is a worker.
    handler = logging.StreamHandler()

    def work():
        own = sys.stderr
        assert own is sys.__stderr__ and type(own).__name__ == "TextIOWrapper"
        assert own.fileno() == 2 and not own.isatty() and own.encoding == "utf-8"
        assert own.write("") == 0 and own.write("12345\\n") == 6
        try:
            own.write(b"bytes")
        except TypeError:
            pass
        else:
            raise AssertionError
        own.writelines(["a\\n", "b\\n"])
        logging.getLogger("made").addHandler(handler)
        logging.getLogger("made").error("by a handler")
        logging.getLogger().addHandler(logging.StreamHandler())
        logging.getLogger("other").error("by another")
        warnings.warn("by a warning")
        os.write(2, b"past the stream\\n")
        try:
            raise ValueError("told")
        except ValueError:
            sys.excepthook(*sys.exc_info())
        os._exit(1)

    if __name__ == "__main__":
        print(main(work).stderr)
    """
    out, err = run(tmp_path, program, method=method)
    # The real one has the same, in the same order, and what does not go through the stream.
    told = err.replace("past the stream\n", "")
    assert told != err and out.rstrip() == told.rstrip()
    for part in ("12345\na\nb\nby a handler\n", "by another", "UserWarning: by a warning", "told"):
        assert part in out


def redirected():
    with contextlib.redirect_stderr(io.StringIO()) as text:
        print("to somebody", file=sys.stderr)
    assert text.getvalue() == "to somebody\n"
    say_and_leave("to everybody")


def test_a_stream_that_a_task_puts_there_is_its_own(context):
    assert lost(context, redirected).stderr == "to everybody"


def no_stream():
    sys.stderr = None
    print("nothing", file=sys.stderr)
    kill()


def closed_stream():
    sys.stderr.close()
    try:
        print("said to a wall", file=sys.stderr)
    except ValueError:
        os._exit(5)


def test_streams_that_are_closed_or_none(context):
    assert lost(context, no_stream).stderr == ""
    error = lost(context, closed_stream)
    assert (error.exitcode, error.stderr) == (5, "said to a wall")


class Fixed:
    """A stream that nothing can be set on."""

    __slots__ = ()

    def write(self, text):
        return len(text)

    def flush(self):
        pass


class Forwarding:
    """A stream that is another one, but for what it writes."""

    def __init__(self, stream):
        object.__setattr__(self, "stream", stream)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __setattr__(self, name, value):
        setattr(self.stream, name, value)

    def write(self, text):
        return self.stream.write(text.upper())


class Refusing(io.StringIO):
    def write(self, text):
        raise OSError("no")


@pytest.mark.parametrize(
    "stream", [None, Fixed(), Refusing(), io.StringIO(), Forwarding(io.StringIO()), object()]
)
def test_streams_that_a_copy_begins_with(monkeypatch, no_handler, stream):
    # Only a forked worker has them.
    monkeypatch.setattr(sys, "stderr", stream)
    error = lost(mp.get_context("fork"), crash_in_c)
    assert " in crash_in_c\n" in error.stderr
    if isinstance(stream, (io.StringIO, Forwarding)):
        assert lost(mp.get_context("fork"), say_or_die).stderr == "said"
        # The parent's is as it was.
        assert stream.getvalue() == "" and "write" not in vars(stream)


def say_or_die():
    try:
        sys.stderr.write("said")
    finally:
        os._exit(1)


def close_and_write(path):
    # As programs do that close whatever they do not know.
    descriptor = _native.words_descriptor()
    os.close(descriptor)
    files = [open(path + str(number), "w") for number in range(20)]
    print("not into these", file=sys.stderr)
    assert descriptor in [file.fileno() for file in files]
    sizes = [os.path.getsize(file.name) for file in files]
    os._exit(sum(sizes))


def test_a_descriptor_that_became_another_file_is_left_alone(context, tmp_path):
    error = lost(context, close_and_write, str(tmp_path / "file"))
    assert (error.exitcode, error.stderr) == (0, "")


# -- who is told


def test_each_loss_has_its_own_words(context):
    with context.Pool(1) as pool:
        results = [pool.apply_async(say_and_leave, (f"words {number}",)) for number in range(4)]
        for number, result in enumerate(results):
            with pytest.raises(mp.WorkerLost) as raised:
                result.get(60)
            assert raised.value.stderr == f"words {number}"
        with pytest.raises(mp.WorkerLost) as raised:
            pool.map(say_and_leave, ["in a map"])
        assert raised.value.stderr == "in a map" and "task 0" in str(raised.value)


def test_the_executors_exception_says_it_too(context):
    with mp.ProcessPoolExecutor(1, context) as executor:
        error = executor.submit(say_and_leave, "to a future").exception(60)
        assert isinstance(error, TaskLost)
        assert (error.exitcode, error.out_of_memory, error.stderr) == (3, False, "to a future")
        assert error.peak_memory > 1 << 20 and str(error).endswith("to a future")
        assert executor.submit(abs, -1).result(60) == 1


def lose_one(method):
    return lost(mp.get_context(method), say_and_leave, "from far below")


def test_pools_within_workers(context):
    inner = context.get_start_method()
    with context.Pool(1) as pool:
        error = pool.apply(lose_one, (inner,))
    assert error.stderr == "from far below" and error.exitcode == 3
    assert error.peak_memory > 1 << 20


def test_it_can_be_pickled():
    for cls in (mp.WorkerLost, TaskLost):
        error = cls("gone", 7, -11, True, 5 << 20, "help\n")
        error.add_note("a note")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is cls and copy.args == ("gone",)
        assert vars(copy) == vars(error) and copy.stderr == "help\n" and copy.pid == 7
    assert vars(mp.WorkerLost("gone"))["peak_memory"] is None


def die_at_once():
    print("there is no such library", file=sys.stderr)
    os._exit(4)


def test_why_there_can_be_no_workers(context):
    with context.Pool(1, die_at_once) as pool:
        with pytest.raises(mp.BrokenPool) as raised:
            pool.apply(abs, (1,))
    assert str(raised.value).endswith("exit code 4; its last words:\nthere is no such library")


def test_losses_leave_nothing(context):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    with context.Pool(2) as pool:
        with pytest.raises(mp.WorkerLost):
            pool.apply(say_and_leave, ("x",))
        pool.map(abs, range(4))
        before = descriptors()
        for number in range(200):
            with pytest.raises(mp.WorkerLost) as raised:
                pool.apply(say_and_leave, (number,))
            assert raised.value.stderr == str(number)
        pool.map(abs, range(4))
        # A worker may be between two lives.
        assert descriptors() <= before + 4


# -- out of memory


@contextlib.contextmanager
def memory_group(limit):
    """The folder of a control group with so much memory, if one can be made here."""
    name = f"bunshin-test-{os.getpid()}"
    kinds = {
        "/sys/fs/cgroup/memory": "memory.limit_in_bytes",
        "/sys/fs/cgroup": "memory.max",
    }
    for root, file in kinds.items():
        folder = pathlib.Path(root, name)
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / file).write_text(str(limit))
            swap = folder / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
        except OSError:
            folder.rmdir()
            continue
        try:
            yield folder
        finally:
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)
        return
    pytest.skip("no control group with a limit of memory can be made here")


@pytest.mark.parametrize("method", METHODS)
def test_out_of_memory(tmp_path, method):
    program = """
    import pathlib, signal

    def devour():
        # Rather this process than its parent.
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
        print("hungry", file=sys.stderr)
        kept = []
        while True:
            kept.append(b"x" * (1 << 20))

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        for work in (kill, devour, kill, devour):
            error = main(work)
            print(error.exitcode, error.out_of_memory, error.peak_memory > 100 << 20, error.stderr)
            print("fewer workers" in str(error))
    """
    with memory_group(256 << 20) as group:
        out, _ = run(
            tmp_path,
            program,
            method=method,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        )
    killed, starved = "-9 False False \nFalse\n", "-9 True True hungry\nTrue\n"
    assert out == killed + starved + killed + starved

"""Pools whose processes others have put something around, as those do who measure what tests cover:
by a `_bootstrap` of their own, which children find by what goes along with their preparation."""

import os
import subprocess
import sys

import pytest

METHODS = ("fork", "spawn", "forkserver")

MEASURE = """
import os
import sys
import multiprocessing
from multiprocessing import process, spawn

given = process.BaseProcess._bootstrap

def tell(*words):
    # Whole lines, as several processes write them.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

calls = []

def trace(frame, event, arg):
    if frame.f_globals.get("__name__") == "work":
        calls.append(frame.f_code.co_name)

def measured(self, *args, **kwargs):
    calls.clear()
    sys.settrace(trace)
    try:
        return given(self, *args, **kwargs)
    finally:
        sys.settrace(None)
        if calls:
            tell("called", *sorted(set(calls)))

class Along:
    def __setstate__(self, state):
        install()
    def __getstate__(self):
        return {"any": 1}

def install():
    if process.BaseProcess._bootstrap is measured:
        return
    process.BaseProcess._bootstrap = measured
    prepare = spawn.get_preparation_data
    spawn.get_preparation_data = lambda name: {**prepare(name), "along": Along()}
"""

WORK = """
import os

def prepare(n):
    return int(n)

def square(n):
    return n * n

def die(n):
    os._exit(3)
"""

PROGRAM = """
import sys
import multiprocessing
import measure
import work

if __name__ == "__main__":
    measure.install()
    context = multiprocessing.get_context(sys.argv[1])
"""

POOL = """
    # A worker that has had no task has begun all the same.
    pool = context.Pool(2, work.prepare, (1,), maxtasksperchild=2)
    measure.tell(pool.map(work.square, range(4), 1))
    pool.close()
    pool.join()
"""

FAULTS = """
    from multiprocessing import pool
    import bunshin
    try:
        with context.Pool(1, work.prepare, ("x",)) as failing:
            failing.map(work.square, range(2))
    except bunshin.BrokenPool as error:
        measure.tell("broken", "invalid literal" in str(error))
    with context.Pool(1) as dying:
        try:
            dying.apply(work.die, (1,))
        except bunshin.WorkerLost as error:
            measure.tell("lost", error.exitcode)
        measure.tell(dying.apply(work.square, (3,)))
    with bunshin.ProcessPoolExecutor(1, mp_context=context) as executor:
        measure.tell(executor.submit(work.square, 4).result(30))
"""


def run(folder, program, method):
    (folder / "measure.py").write_text(MEASURE)
    (folder / "work.py").write_text(WORK)
    (folder / "program.py").write_text(PROGRAM + program)
    done = subprocess.run(
        [sys.executable, "-m", "bunshin", str(folder / "program.py"), method],
        capture_output=True,
        text=True,
        timeout=120,
        # What goes along is found before the parent's path is there.
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [str(folder), *sys.path]))),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("method", METHODS)
def test_workers_live_within_what_is_around_processes(method, tmp_path):
    told = run(tmp_path, POOL, method)
    assert "[0, 1, 4, 9]" in told
    measured = [line for line in told if line.startswith("called")]
    assert "called prepare square" in measured
    assert set(measured) <= {"called prepare square", "called prepare"}


@pytest.mark.parametrize("method", METHODS)
def test_what_goes_wrong_in_them_is_told_as_ever(method, tmp_path):
    told = run(tmp_path, FAULTS, method)
    assert [line for line in told if not line.startswith("called")] == [
        "broken True",
        "lost 3",
        "9",
        "16",
    ]
    # An executor's workers end in order.
    assert "called square" in told

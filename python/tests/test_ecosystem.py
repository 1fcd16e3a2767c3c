"""Where programs live: notebooks, prompts, `-c`, pytest, virtual environments, frozen programs,
and libraries that use `multiprocessing`.

What is not installed is passed over.
"""

import importlib.util
import os
import pathlib
import pty
import select
import subprocess
import sys
import time

import pytest

METHODS = ("fork", "spawn", "forkserver")


def run(*command, cwd=None, limit=60):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=limit, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(*names):
    for name in names:
        pytest.importorskip(name)


# -- main modules that children cannot import

DEFINITIONS = """
import bunshin as mp
context = mp.get_context({method!r})
factor = 3
def square(n):
    return n * n
def cube(n):
    return n * square(n)
class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return type(self) is type(other) and self.x == other.x
def put(queue, point):
    queue.put((cube(point.x), Point(7)))
class Task(context.Process):
    def run(self):
        raise SystemExit(square(4))
def fail(n):
    raise ValueError(n)
"""

USES = """
with context.Pool(2) as pool:
    assert pool.map(cube, range(4)) == [0, 1, 8, 27]
    assert pool.map(lambda n: n * factor, range(4)) == [0, 3, 6, 9]
    assert pool.map(Point, range(2)) == [Point(0), Point(1)]
    assert pool.apply_async(square, (5,)).get(20) == 25
    try:
        pool.map(fail, [1])
    except ValueError as error:
        assert error.args == (1,)
    else:
        assert False
queue = context.Queue()
child = context.Process(target=put, args=(queue, Point(2)))
child.start()
assert queue.get(timeout=20) == (8, Point(7))
child.join(20)
assert child.exitcode == 0
task = Task()
task.start()
task.join(20)
assert task.exitcode == 16
here, there = context.Pipe()
here.send(Point(1))
assert there.recv() == Point(1)
with mp.ProcessPoolExecutor(2, mp_context=context) as executor:
    assert list(executor.map(cube, range(3))) == [0, 1, 8]
    assert executor.submit(lambda: factor).result(20) == 3
with context.Manager() as manager:
    shared = manager.dict()
    child = context.Process(target=lambda: shared.update(a=cube(2)))
    child.start()
    child.join(20)
    assert dict(shared) == {"a": 8}
print("all", "right")
"""


@pytest.mark.parametrize("method", METHODS)
def test_under_dash_c(method):
    program = DEFINITIONS.format(method=method) + USES
    assert run(sys.executable, "-c", program) == "all right\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_program_on_standard_input(method):
    program = DEFINITIONS.format(method=method) + USES
    done = subprocess.run(
        [sys.executable], input=program, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "all right\n", done.stderr


def test_what_is_by_value_is_as_it_is_now():
    program = """
import bunshin as mp
context = mp.get_context("spawn")
def answer(n):
    return factor
factor = 1
with context.Pool(1) as pool:
    assert pool.map(answer, [0]) == [1]
    factor = 2
    assert pool.map(answer, [0]) == [2]
    def answer(n):
        return -factor
    assert pool.map(answer, [0]) == [-2]
    assert pool.map(str, ["__main__"]) == ["__main__"]
    assert pool.apply(len, (b"__main__" * 50_000,)) == 400_000
    # An object that cannot go either way is the caller's error.
    class Refuses:
        def __reduce__(self):
            raise RuntimeError("not me")
    try:
        pool.apply(str, (Refuses(),))
    except RuntimeError as error:
        assert str(error) == "not me"
    else:
        assert False
print("right")
"""
    assert run(sys.executable, "-c", program) == "right\n"


@pytest.mark.parametrize("method", METHODS)
def test_in_a_notebook(method):
    needs("ipykernel", "nbclient", "nbformat")
    import nbformat.v4
    from nbclient import NotebookClient

    asynchronous = """
import asyncio
with mp.ProcessPoolExecutor(2, mp_context=context) as executor:
    loop = asyncio.get_running_loop()
    print(await asyncio.gather(*(loop.run_in_executor(executor, cube, n) for n in range(3))))
"""
    printing = "child = context.Process(target=print); child.start(); child.join()"
    cells = [DEFINITIONS.format(method=method), USES, asynchronous, printing]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    os.environ["PYTHONPATH"], before = os.pathsep.join(sys.path), os.environ.get("PYTHONPATH")
    try:
        # A cell that raises is an error here.
        NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    texts = ["".join(part.get("text", "") for part in cell.outputs) for cell in notebook.cells]
    assert texts[:3] == ["", "all right\n", "[0, 1, 8]\n"]


@pytest.mark.parametrize("method", METHODS)
def test_ipython_dash_c(method, tmp_path):
    needs("IPython")
    program = DEFINITIONS.format(method=method) + USES
    ipython = (sys.executable, "-m", "IPython", "--quick", f"--ipython-dir={tmp_path}")
    assert "all right" in run(*ipython, "-c", program)


@pytest.mark.parametrize("shell", ["python", "IPython"])
@pytest.mark.parametrize("method", METHODS)
def test_at_a_prompt(method, shell, tmp_path):
    command = [sys.executable, "-i"]
    if shell == "IPython":
        needs("IPython")
        command = [sys.executable, "-m", "IPython", "--quick", "--simple-prompt"]
        command += [f"--ipython-dir={tmp_path}", "--colors=NoColor"]
    (tmp_path / "cell.py").write_text(DEFINITIONS.format(method=method) + USES)
    # In the prompt's own module, as if it were typed.
    line = f"exec(open({str(tmp_path / 'cell.py')!r}).read(), globals())\n"
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True, start_new_session=True
    )
    os.close(theirs)
    told, deadline = b"", time.monotonic() + 60
    try:
        os.write(ours, line.encode())
        while b"all right" not in told and time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                told += os.read(ours, 4096)
        assert b"all right" in told, told.decode(errors="replace")
        os.write(ours, b"exit()\n")
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)


# -- frozen programs

FROZEN = """
import os, sys
sys.frozen = True
sys.executable = os.environ["FROZEN_PROGRAM"]
import bunshin as mp
from bunshin import shared_memory

def square(n):
    return n * n

if __name__ == "__main__":
    mp.freeze_support()
    for method in ("fork", "spawn", "forkserver"):
        context = mp.get_context(method)
        with context.Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
        child = context.Process(target=square, args=(2,))
        child.start()
        child.join(20)
        assert child.exitcode == 0
    memory = shared_memory.SharedMemory(create=True, size=10)
    print("begun with", sys.argv[1:], memory.name)
"""


def test_a_frozen_program(tmp_path):
    (tmp_path / "program.py").write_text(FROZEN)
    frozen = tmp_path / "frozen"
    frozen.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/program.py "$@"\n')
    frozen.chmod(0o755)
    os.environ["FROZEN_PROGRAM"] = str(frozen)
    try:
        told = run(str(frozen), "a", "b")
    finally:
        del os.environ["FROZEN_PROGRAM"]
    said, _, name = told.rstrip().rpartition(" ")
    # Once: children do not get that far.
    assert said == "begun with ['a', 'b']"
    # What removes names is the frozen program, too.
    left, deadline = pathlib.Path("/dev/shm") / name.lstrip("/"), time.monotonic() + 20
    while left.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left.exists()


# -- virtual environments


@pytest.mark.parametrize("method", METHODS)
def test_children_are_in_the_virtual_environment(method, tmp_path):
    import venv

    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    program = f"""
import bunshin as mp
import sys
def where():
    return sys.prefix
if __name__ == "__main__":
    with mp.get_context({method!r}).Pool(1) as pool:
        there = pool.apply(where)
    assert there == sys.prefix != sys.base_prefix, there
    print("same")
"""
    (tmp_path / "program.py").write_text(program)
    assert run(str(python), str(tmp_path / "program.py")) == "same\n"


# -- under pytest

TESTS = """
import bunshin as mp
import pytest

def square(n):
    return n * n

@pytest.fixture(params=["fork", "spawn", "forkserver"])
def context(request):
    return mp.get_context(request.param)

def test_pool(context):
    with context.Pool(2) as pool:
        assert pool.map(square, range(3)) == [0, 1, 4]

def test_executor(context):
    with mp.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(square, range(3))) == [0, 1, 4]

@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_output(method, capfd):
    # What a server has for standard output, its copies have.
    child = mp.get_context(method).Process(target=print, args=("heard",))
    child.start()
    child.join(20)
    assert capfd.readouterr().out == "heard\\n"
"""


@pytest.mark.parametrize("options", [[], ["-s"], ["-n", "2"]])
def test_under_pytest(options, tmp_path):
    if "-n" in options:
        needs("xdist")
    (tmp_path / "test_it.py").write_text(TESTS)
    if "-s" in options:
        # Nothing is captured then.
        options = [*options, "-k", "not output"]
    pytest_itself = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    options = *options, f"--basetemp={tmp_path / 'files'}"
    told = run(*pytest_itself, *options, "test_it.py", cwd=tmp_path, limit=120)
    assert " passed" in told and "failed" not in told


# -- libraries, unmodified

JOBLIB = """
from joblib import Parallel, delayed

def square(n):
    return n * n

if __name__ == "__main__":
    import multiprocessing
    assert multiprocessing.__name__ == "bunshin"
    print(Parallel(n_jobs=2, backend="multiprocessing")(delayed(square)(n) for n in range(5)))
"""

TQDM = """
from concurrent.futures import as_completed
import multiprocessing
from tqdm.contrib.concurrent import process_map

def square(n):
    return n * n

if __name__ == "__main__":
    import bunshin
    assert multiprocessing is bunshin
    print(process_map(square, range(5), max_workers=2, chunksize=1))
"""

FUTURES = """
import asyncio
from concurrent.futures import ProcessPoolExecutor, as_completed

def square(n):
    return n * n

async def main():
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2) as executor:
        return await asyncio.gather(*(loop.run_in_executor(executor, square, n) for n in range(5)))

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        futures = [executor.submit(square, n) for n in range(5)]
        assert sorted(future.result() for future in as_completed(futures)) == [0, 1, 4, 9, 16]
    print(asyncio.run(main()))
"""


@pytest.mark.parametrize(
    ("library", "program"), [("joblib", JOBLIB), ("tqdm", TQDM), ("asyncio", FUTURES)]
)
@pytest.mark.parametrize("method", METHODS)
def test_libraries_with_multiprocessing_replaced(library, program, method, tmp_path):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    begin = 'if __name__ == "__main__":\n'
    choose = f"    import multiprocessing\n    multiprocessing.set_start_method({method!r})\n"
    path = tmp_path / "program.py"
    path.write_text(program.replace(begin, begin + choose, 1))
    assert run(sys.executable, "-m", "bunshin", str(path)) == "[0, 1, 4, 9, 16]\n"


def test_tqdm_with_the_packages_executor():
    needs("tqdm")
    program = """
import bunshin, concurrent.futures
concurrent.futures.ProcessPoolExecutor = bunshin.ProcessPoolExecutor
from tqdm.contrib.concurrent import process_map
if __name__ == "__main__":
    print(process_map(abs, [-1, 2, -3], max_workers=2, chunksize=1))
"""
    assert run(sys.executable, "-c", program) == "[1, 2, 3]\n"

"""What programs and libraries reach for in `multiprocessing` without asking, and packages that are
built on what is private there."""

import importlib.util
import os
import subprocess
import sys

import bunshin as mp
import pytest


def run(path, text, *command):
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, *command, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["connection", "queues", "spawn", "shared_memory", "dummy"])
def test_modules_are_there_without_an_import_of_their_own(name, tmp_path):
    # `multiprocessing.connection.wait` is much used by those who have only made a queue.
    text = f"import bunshin as mp\nfound = mp.{name}\nimport bunshin.{name} as there\n"
    assert run(tmp_path / "program.py", text + "print(found is there)\n") == "True\n"


def test_what_is_no_module_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mp.nothing
    assert not hasattr(mp, "_native_nothing")


def test_an_object_that_is_no_file_cannot_be_waited_for():
    with pytest.raises(ValueError, match="1.5"):
        mp.connection.wait([1.5], 0)


def test_bytes_are_not_received_into_what_is_read_only():
    a, b = mp.Pipe()
    a.send_bytes(b"abc")
    with pytest.raises(TypeError):
        b.recv_bytes_into(b"12345")
    # They are still there.
    into = bytearray(3)
    assert b.recv_bytes_into(into) == 3 and into == b"abc"


def test_without_cloudpickle_the_error_is_that_of_pickle(tmp_path):
    text = """
import sys
sys.modules["cloudpickle"] = None
import pickle
import bunshin as mp
try:
    mp.Queue().put(lambda: 1)
except (pickle.PicklingError, AttributeError) as error:
    print("lambda" in str(error))
"""
    assert run(tmp_path / "program.py", text) == "True\n"


# -- packages that subclass what is private

APART = """
import multiprocessing
from multiprocessing import context as contexts

def first():
    from multiprocessing import queues
    import multiprocessing.util
    return queues.Queue.__module__, multiprocessing.util.__name__

def second():
    import multiprocessing as package
    return package.__name__, multiprocessing.__name__, contexts.__name__
"""

USES_APART = """
if __name__ == "__main__":
    import multiprocessing
    import loky.inner
    print(multiprocessing.__name__, multiprocessing.Queue().__class__.__module__)
    print(*loky.inner.second())
    print(*loky.inner.first())
"""


def test_a_package_that_is_built_on_the_interpreters_own_gets_that(tmp_path):
    (tmp_path / "loky").mkdir()
    (tmp_path / "loky" / "__init__.py").write_text("")
    (tmp_path / "loky" / "inner.py").write_text(APART)
    lines = run(tmp_path / "program.py", USES_APART, "-m", "bunshin").splitlines()
    assert lines[0] == "bunshin bunshin.queues"
    assert lines[1] == "multiprocessing multiprocessing multiprocessing.context"
    assert lines[2].split()[1] == "multiprocessing.util"
    assert lines[2].split()[0] in ("multiprocessing.queues", "bunshin._own.queues")


LOKY = """
from joblib import Parallel, delayed
from joblib.externals.loky import ProcessPoolExecutor

def square(n):
    return n * n

if __name__ == "__main__":
    import multiprocessing
    assert multiprocessing.__name__ == "bunshin"
    print(Parallel(n_jobs=2)(delayed(square)(n) for n in range(5)))
    with multiprocessing.Pool(2) as pool:
        print(pool.map(square, range(5)))
    with ProcessPoolExecutor(1) as executor:
        print(executor.submit(square, 5).result())
"""


def test_jobs_of_joblib_run_in_its_own_processes(tmp_path):
    if importlib.util.find_spec("joblib") is None:
        pytest.skip("joblib is not installed")
    told = run(tmp_path / "program.py", LOKY, "-m", "bunshin")
    assert told == "[0, 1, 4, 9, 16]\n[0, 1, 4, 9, 16]\n25\n"

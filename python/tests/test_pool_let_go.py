"""Pools that nobody has any more end, wherever the last one lets go of them."""

import os
import subprocess
import sys
import threading
import weakref

import pytest
from waiting import SECONDS, eventually

import bunshin as mp


@pytest.fixture(params=("fork", "spawn", "forkserver"))
def context(request):
    return mp.get_context(request.param)


def give(number):
    if number < 0:
        raise ValueError(number)
    return number


def has_ended(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("max_tasks", (None, 1))
@pytest.mark.parametrize("number", (3, -3))
def test_the_last_one_that_has_a_pool_may_be_a_callback(context, number, max_tasks):
    told = threading.Event()

    def use():
        pool = context.Pool(2, maxtasksperchild=max_tasks)
        pids = [worker.pid for worker in pool._pool]
        pool.apply_async(give, (number,), callback=tell, error_callback=tell)
        return weakref.ref(pool), pids

    def tell(result):
        told.set()

    for _ in range(3):
        pool, pids = use()
        assert told.wait(SECONDS)
        # Nothing of the package's is called meanwhile.
        eventually(lambda pool=pool: pool() is None)
        eventually(lambda pids=pids: all(map(has_ended, pids)))
        told.clear()


LET_GO_IN_A_FORK = """
import os
import time
import warnings
import weakref

import bunshin as mp

warnings.simplefilter("ignore")
kept = []
# Whoever is about to replace a worker has the pool's lock.
os.register_at_fork(before=kept.clear)
for _ in range(3):
    pool = mp.get_context("fork").Pool(2)
    known = weakref.ref(pool)
    pool.apply_async(os._exit, (1,))
    kept.append(pool)
    del pool
    while known() is not None:
        time.sleep(0.01)
    assert not kept
    with mp.get_context("fork").Pool(1) as another:
        assert another.apply(abs, (-1,)) == 1
print("done")
"""


OF_EXECUTORS = (
    LET_GO_IN_A_FORK.replace('mp.get_context("fork").Pool(', "mp.ProcessPoolExecutor(")
    .replace("apply_async(os._exit, (1,))", "submit(os._exit, 1)")
    .replace("apply(abs, (-1,))", "submit(abs, -1).result()")
    .replace("import bunshin as mp", 'import bunshin as mp\n\nmp.set_start_method("fork")')
)


@pytest.mark.parametrize("text", (LET_GO_IN_A_FORK, OF_EXECUTORS), ids=("pool", "executor"))
def test_a_pool_may_be_let_go_within_the_start_of_its_worker(tmp_path, text):
    program = tmp_path / "program.py"
    program.write_text(text)
    ran = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")

"""Programs as their users have them print the same with this package and with `multiprocessing`."""

import os
import pathlib
import subprocess
import sys

import pytest
from real_programs import PROGRAMS

HERE = pathlib.Path(__file__).parent


def printed(module, method, name):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PROGRAM_MODULE": module,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "real_programs.py"), method, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("name", [program.__name__ for program in PROGRAMS])
def test_a_program_prints_the_same(method, name):
    assert printed("bunshin", method, name) == printed("multiprocessing", method, name)

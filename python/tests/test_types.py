"""The stubs: beside the package as it is, and as a type checker reads them."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")

TESTS = pathlib.Path(__file__).resolve().parent
CONFIG = TESTS.parent / "pyproject.toml"


def run(*arguments):
    # Where no folder is called like the package, so that the installed one is checked.
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=TESTS / "types",
        env={**os.environ, "MYPY_CACHE_DIR": os.devnull},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_stubs_are_true():
    run(
        "mypy.stubtest",
        "bunshin",
        "--ignore-missing-stub",
        "--mypy-config-file",
        str(CONFIG),
        "--allowlist",
        "stubtest.txt",
    )


def test_a_program_is_understood():
    run("mypy", "--strict", "--config-file", str(CONFIG), "program.py")

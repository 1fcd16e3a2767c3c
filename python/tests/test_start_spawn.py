"""Spawned children: what they begin and end with, beside those of the interpreter's own."""

import collections
import json
import operator
import os
import subprocess
import sys

import pytest

PROGRAM = '''\
from __future__ import annotations
import atexit, gc, json, os, sys, weakref
import PACKAGE as mp

LABEL = "Ü"
seen_at_import = [__name__, sys.argv[0], gc.isenabled(), sorted(
    name for name in ("__mp_main__", "__main__") if name in sys.modules)]
#: Open until the end, and not written out before.
kept = open(os.environ["KEPT"], "a")


class Circle:
    def __init__(self, name):
        self.name, self.own = name, self

    def __del__(self):
        os.write(1, f"{self.name} is gone\\n".encode())


class Plain:
    def __del__(self):
        os.write(1, b"a plain object is gone\\n")


circle = Circle("a module's circle")
plain = Plain()
weakref.finalize(circle, os.write, 1, b"the end of the circle is told\\n")


def change():
    global LABEL
    LABEL = "changed"


def look():
    change()
    main = sys.modules["__main__"]
    Circle("one of a function")
    found = {
        "at import": seen_at_import,
        "gc": [gc.isenabled(), gc.get_threshold()],
        "main": [main.__name__, main.__file__, main.__package__, main.__spec__, main.__doc__,
                 main is sys.modules["__mp_main__"], repr(main.__loader__), look.__module__],
        "globals": LABEL,
        "argv": sys.argv,
        "annotations": change.__annotations__,
        "seen": any(found is circle for found in gc.get_objects()),
        "flags": getattr(sys.modules["__main__"], "annotations", None) is not None,
    }
    os.write(1, json.dumps(found).encode() + b"\\n")
    atexit.register(os.write, 1, b"at the end\\n")
    kept.write("kept\\n")
    main.kept_too = Circle("a late one")


if __name__ == "__main__":
    kept.close()
    del circle, plain
    child = mp.get_context("spawn").Process(target=look)
    child.start()
    child.join()
    print("ended with", child.exitcode)
'''


def run(folder, package, name, arguments=("-x", "two words")):
    """What a program and its child print, with that package; and what it left in a file."""
    folder = folder / f"with_{package}"
    folder.mkdir()
    path = folder / name
    path.write_text(PROGRAM.replace("PACKAGE", package), encoding="utf-8")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), KEPT=str(folder / "kept"))
    ran = subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=folder,
    )
    shown = ran.stdout.replace(str(folder), "FOLDER")
    return shown, ran.stderr, ran.returncode, (folder / "kept").read_text()


@pytest.mark.parametrize("name", ("program.py", "no_extension", "two.dots.py"))
def test_a_child_finds_and_leaves_what_the_interpreters_own_does(tmp_path, name):
    ours, theirs = (run(tmp_path, package, name) for package in ("bunshin", "multiprocessing"))
    assert ours[1:] == theirs[1:] == ("", 0, "kept\n")
    # The main module's circles go in an order that is nobody's promise, and CPython 3.14 leaves some.
    shown = (collections.Counter(printed[0].splitlines()) for printed in (theirs, ours))
    assert not operator.sub(*shown)
    found = json.loads(next(line for line in ours[0].splitlines() if line.startswith("{")))
    assert found["at import"][0] == "__mp_main__"
    assert found["globals"] == "changed"
    assert "a module's circle is gone" in ours[0]


def child_of(tmp_path, text, package):
    path = tmp_path / f"with_{package}.py"
    path.write_text(text.replace("PACKAGE", package))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=60, env=environment
    )


def test_a_main_module_that_fails_in_the_child(tmp_path):
    text = """\
import PACKAGE as mp

if __name__ != "__main__":
    1 / 0

if __name__ == "__main__":
    child = mp.get_context("spawn").Process(target=print)
    child.start()
    child.join()
    print(child.exitcode)
"""
    ours, theirs = (child_of(tmp_path, text, name) for name in ("bunshin", "multiprocessing"))
    assert ours.stdout == theirs.stdout == "1\n"
    for ran in (ours, theirs):
        assert "1 / 0" in ran.stderr and ran.stderr.rstrip().endswith("division by zero")


def test_a_site_that_collects_no_garbage_is_heeded(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import gc; gc.disable()")
    text = f"""\
import gc, sys
import PACKAGE as mp

def look():
    print(gc.isenabled())

if __name__ == "__main__":
    import os
    os.environ["PYTHONPATH"] = {str(tmp_path)!r} + os.pathsep + os.environ["PYTHONPATH"]
    child = mp.get_context("spawn").Process(target=look)
    child.start()
    child.join()
"""
    for package in ("bunshin", "multiprocessing"):
        ran = child_of(tmp_path, text, package)
        assert (ran.stdout, ran.stderr) == ("False\n", "")

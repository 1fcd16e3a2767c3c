"""Measures this package and the interpreter's `multiprocessing`, interleaved in one run.

    python compare.py [FILE ...] [--only PATTERN] [--method METHOD] [--rounds N] [--seconds S]

Each file beside this one (or each named) has rows: functions under `@row("name")`, which get a
`multiprocessing` (ours or the interpreter's, as a context of the start method) and give a pair:
`run(seconds)`, which gives the operations that it did in a second, and `end()`. Both sides are set
up, and then measured in turn, round by round; the table has the medians and their ratio.
"""

import argparse
import fnmatch
import importlib.util
import multiprocessing
import os
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import bunshin  # noqa: E402

_rows = {}


def row(name, goal=None, gib=0, rounds=None):
    """Has a function measure what the table calls `name`; `goal` is the ratio aimed at, or a text
    where it is something else.

    A row that needs `gib` GiB of memory is measured only where the machine has them, and one that takes
    long in `rounds` rounds at most.
    """

    def note(measure):
        _rows[name] = (measure, goal, gib, rounds)
        return measure

    return note


def timed(work, seconds, batch=1):
    """Calls `work()` for so long; operations in a second, at `batch` of them in a call."""
    work()
    calls = 0
    start = time.perf_counter()
    deadline = start + seconds
    while True:
        work()
        calls += 1
        now = time.perf_counter()
        if now >= deadline:
            return calls * batch / (now - start)


def load(path):
    """Takes the rows of a file."""
    # By its own name, so that children find what they are to run.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)


def memory_left():
    """Memory that is free, in GiB."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / (1 << 20)
    return 0


def number(value):
    """Operations in a second, to be read."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def main():
    """Runs the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="files with rows; all beside this one if none")
    parser.add_argument("--only", default="*", help="rows whose names match, as the shell does")
    parser.add_argument("--method", action="append", choices=("fork", "spawn", "forkserver"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a measurement takes")
    options = parser.parse_args()
    # Children look for the modules of the rows, and are to find the package that this process has.
    package = pathlib.Path(bunshin.__file__).parent.parent
    paths = [str(HERE), str(package), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    own = pathlib.Path(__file__).resolve()
    files = [pathlib.Path(name).resolve() for name in options.files]
    for path in files or sorted(HERE.glob("*.py")):
        if path != own:
            load(path)
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"CPython {version}, {os.cpu_count()} processors, medians of {options.rounds} rounds\n")
    print("| row | method | bunshin /s | multiprocessing /s | ratio | goal |")
    print("|---|---|---|---|---|---|", flush=True)
    for method in options.method or ["fork"]:
        for name, (measure, goal, gib, most) in _rows.items():
            if not fnmatch.fnmatchcase(name, options.only):
                continue
            left = memory_left()
            if gib > left:
                why = f"left out: needs {gib} GiB, and {left:.0f} are free"
                print(f"| {name} | {method} | {why} | | | {goal} x |", flush=True)
                continue
            sides = [measure(mp.get_context(method)) for mp in (bunshin, multiprocessing)]
            figures = [[], []]
            for turn in range(min(options.rounds, most or options.rounds)):
                # Neither is always first.
                for side in (0, 1) if turn % 2 == 0 else (1, 0):
                    figures[side].append(sides[side][0](options.seconds))
            for _, end in sides:
                end()
            ours, theirs = map(statistics.median, figures)
            if not isinstance(goal, str):
                goal = f"{goal} x" if goal else ""
            print(
                f"| {name} | {method} | {number(ours)} | {number(theirs)} "
                f"| {ours / theirs:.2f} x | {goal} |",
                flush=True,
            )


if __name__ == "__main__":
    # Files with rows import this module by its name, and are to find the same one.
    sys.modules["compare"] = sys.modules["__main__"]
    main()

"""The memory of an idle pool of 8 workers after 100 tasks, its parent included, in MB.

    python memory.py [--method METHOD] [--workers N]

Each side runs in a process of its own, and memory that processes share counts once (`Pss` in
proc(5)). The goal is no more than the interpreter's own pool takes.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROUNDS = 3


def same(value):
    return value


def proportional(pid):
    """The bytes of a process, where those that several share count once among them."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"the system does not say what process {pid} uses")


def family(pid):
    """A process and all that descend from it."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def one(side, method, workers):
    """Prints what one side takes."""
    if side == "bunshin":
        import bunshin as mp
    else:
        import multiprocessing as mp
    with mp.get_context(method).Pool(workers) as pool:
        pool.map(same, range(100), 1)
        time.sleep(0.3)
        print(sum(map(proportional, family(os.getpid()))))


def main():
    """Measures both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", action="append", choices=("fork", "spawn", "forkserver"))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        one(options.side, options.method[0], options.workers)
        return
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    print("| method | bunshin MB | multiprocessing MB |")
    print("|---|---|---|", flush=True)
    for method in options.method or ["fork", "spawn", "forkserver"]:
        taken = []
        for side in ("bunshin", "multiprocessing"):
            command = [sys.executable, __file__, "--side", side, "--method", method]
            command += ["--workers", str(options.workers)]
            sizes = [int(subprocess.check_output(command)) for _ in range(ROUNDS)]
            taken.append(f"{statistics.median(sizes) / 1e6:.1f}")
        print(f"| {method} | {taken[0]} | {taken[1]} |", flush=True)


if __name__ == "__main__":
    main()

"""Measures this package beside other Python pools and queues, interleaved in one run.

    python peers.py [--only PATTERN] [--method METHOD] [--rounds N] [--seconds S] [--save]

The peers are those of `concurrent.futures`, loky, mpire, billiard, multiprocess and faster-fifo; the
interpreter's `multiprocessing` is the one that the others are told in multiples of. One that is not
installed is printed as such. All sides of a row are set up, what they give is looked at once, and
then they are measured in turn, round by round, each time beginning with another one; the table has
the medians. The second table is what becomes of a pool one of whose workers is killed at a task; each
pool has ten seconds for that in a program of its own.
"""

import argparse
import contextlib
import datetime
import fnmatch
import importlib.metadata
import io
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compare  # noqa: E402
import peer_pools  # noqa: E402
from peer_pools import PEERS, ROWS  # noqa: E402

#: How long a pool may take to say that it has lost a worker.
PATIENCE = 10


def sides(method, measure, needs):
    """Sets up all peers of a row; gives those that run, and why others do not."""
    running, absent = {}, {}
    # The first one is billiard: its children run what `multiprocessing` does at the end of a
    # process, and fail at the children of `multiprocessing` that their parent had when it forked.
    for name in sorted(PEERS, key=lambda name: name != "billiard"):
        make, package = PEERS[name]
        try:
            peer = make(method)
            if not hasattr(peer, needs):
                absent[name] = "has none"
                continue
            run, end = measure(peer)
        except ImportError:
            absent[name] = f"{package or 'numpy'} is not installed"
        except Exception as error:
            absent[name] = f"does not run: {error!r}"
        else:
            running[name] = run, end
    return running, absent


def versions():
    """What was measured."""
    found = [f"CPython {'.'.join(map(str, sys.version_info[:3]))}"]
    for _, package in PEERS.values():
        if package:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def measured(options, say):
    """Prints the table of figures."""
    say("| row | peer | /s | to multiprocessing |")
    say("|---|---|---|---|")
    for name, (measure, needs) in ROWS.items():
        if not fnmatch.fnmatchcase(name, options.only):
            continue
        running, absent = sides(options.method, measure, needs)
        figures = {peer: [] for peer in running}
        order = [peer for peer in PEERS if peer in running]
        for _ in range(options.rounds):
            for peer in order:
                if peer not in absent:
                    try:
                        figures[peer].append(running[peer][0](options.seconds))
                    except Exception as error:
                        absent[peer] = f"fails: {error!r}"
            # None is always first.
            order.append(order.pop(0))
        for _, end in running.values():
            end()
        medians = {
            peer: statistics.median(taken)
            for peer, taken in figures.items()
            if peer not in absent
        }
        theirs = medians.get("multiprocessing", float("nan"))
        for peer in PEERS:
            if peer in medians:
                figure = compare.number(medians[peer])
                say(f"| {name} | {peer} | {figure} | {medians[peer] / theirs:.2f} x |")
            elif absent[peer] != "has none":
                say(f"| {name} | {peer} | {absent[peer]} | |")


def lost(options, say):
    """Prints the table of what becomes of a pool that loses a worker."""
    say("\n| a worker is killed at its task | what the caller sees | the pool afterwards |")
    say("|---|---|---|")
    for name, (make, package) in PEERS.items():
        try:
            if not hasattr(make(options.method), "pool"):
                continue
        except ImportError:
            say(f"| {name} | {package} is not installed | |")
            continue
        command = [sys.executable, str(HERE / "peer_pools.py"), name, options.method]
        # Apart, so that what it starts can be ended with it.
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        ) as process:
            seen = []
            peer_pools.read_lines(process, seen, PATIENCE)
        seen += [f"nothing: waits for more than {PATIENCE} s", ""][len(seen) :]
        say(f"| {name} | {seen[0]} | {seen[1] or 'not reached'} |")


def main():
    """Runs the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="rows whose names match, as the shell does")
    parser.add_argument("--method", default="fork", choices=("fork", "spawn", "forkserver"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a measurement takes")
    parser.add_argument("--save", action="store_true", help="writes what it prints to results/")
    options = parser.parse_args()
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    text = io.StringIO()

    def say(line):
        print(line, flush=True)
        print(line, file=text)

    start = time.monotonic()
    say(f"{versions()}; {os.cpu_count()} processors, start method {options.method}")
    say(f"medians of {options.rounds} rounds of {options.seconds} s\n")
    measured(options, say)
    if fnmatch.fnmatchcase("lost worker", options.only):
        lost(options, say)
    print(f"\n{time.monotonic() - start:.0f} s")
    if options.save:
        today = datetime.date.today().isoformat()
        path = HERE / "results" / f"{today}-peers-{options.method}.md"
        path.write_text(f"# The Python package beside its peers\n\n{text.getvalue()}")
        print(path)


if __name__ == "__main__":
    main()

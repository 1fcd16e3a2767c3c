"""Runs the interpreter's own tests of `multiprocessing` against this package.

    python conformance.py [--suite fork] [--only PATTERN] [--limit SECONDS] [--jobs N] [--list]

The suites are the tests of `multiprocessing` under each start method (`fork`, `spawn`,
`forkserver`), and those of `concurrent.futures` for process pools: with the interpreter's
executor over this package's contexts (`futures`), and with this package's executor (`executor`).

The tests are loaded from the interpreter at run time, with `multiprocessing` replaced; none of
their text is kept here. Each has a hard time limit. One that fails is tried once more when all
others are done, as some measure time. What is expected to fail stands in `expected.txt`, with
its reason, and is given less time; anything else that fails fails the run, and so does an
expected failure that passes.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
SUITES = ("fork", "spawn", "forkserver", "futures", "executor")
GOOD = ("passed", "skipped")

#: Seconds that a test may take which is expected to fail, perhaps by waiting for ever.
EXPECTED_LIMIT = 10


class Server:
    """A process that runs tests, and is killed with all below it if one takes too long."""

    def __init__(self, suite, listing=False):
        answers, theirs = os.pipe()
        environment = dict(os.environ)
        if listing:
            environment["CONFORMANCE_LIST"] = "1"
        move = f"exec {theirs}>&3" if theirs == 3 else f"exec 3>&{theirs} {theirs}>&-"
        program = str(HERE / "serve.py")
        self.log = open(pathlib.Path(tempfile.gettempdir()) / "conformance.log", "ab")
        self.process = subprocess.Popen(
            ["bash", "-c", move + '; exec "$@"', "-", sys.executable, program, suite],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            pass_fds=[theirs],
            env=environment,
            start_new_session=True,
            text=True,
        )
        os.close(theirs)
        self.answers = os.fdopen(answers)

    def answer(self, limit):
        deadline = time.monotonic() + limit
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.answers], [], [], left)[0]:
                return self.answers.readline() or None
        return "late"

    def run(self, name, limit):
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
            line = self.answer(limit)
        except BrokenPipeError:
            line = None
        if line == "late":
            return {"outcome": "hung", "text": f"not done after {limit} s", "seconds": limit}
        if line is None:
            return {"outcome": "crashed", "text": "the interpreter ended", "seconds": 0}
        return json.loads(line)

    def end(self):
        try:
            self.process.stdin.close()
            self.process.wait(5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.answers.close()
        self.log.close()


def names_of(suite):
    server = Server(suite, listing=True)
    line = server.answer(60)
    server.end()
    if line is None or line == "late":
        sys.exit(f"the tests of {suite} cannot be loaded; see conformance.log in the folder for temporary files")
    return json.loads(line)


def expected(path):
    """Pattern to reason; patterns are `suite:Class.test`, as the shell matches names."""
    patterns = {}
    if path.exists():
        for line in path.read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                pattern, _, reason = line.partition("  ")
                patterns[pattern.strip()] = reason.strip()
    return patterns


class Run:
    """All tests that are wanted, in servers side by side."""

    def __init__(self, options, reasons):
        self.options = options
        self.reasons = reasons
        self.results = {}
        self.lock = threading.Lock()
        self.groups = queue.SimpleQueue()

    def take(self, suite, names):
        # A class has fixtures, which are dear to make.
        by_class = {}
        for name in names:
            by_class.setdefault(name.partition(".")[0], []).append(name)
        for group in by_class.values():
            for start in range(0, len(group), 12):
                self.groups.put((suite, group[start : start + 12]))

    def note(self, suite, name, found, again):
        full = f"{suite}:{name}"
        with self.lock:
            if again:
                found["again"] = True
            self.results[full] = found
            if self.options.verbose or found["outcome"] not in GOOD or again:
                print(f"{found['outcome']:8} {full} ({found['seconds']} s)", flush=True)
                if found["text"]:
                    print("    " + found["text"].strip().replace("\n", "\n    "), flush=True)

    def work(self, again=False):
        server, serves = None, None
        while True:
            try:
                suite, names = self.groups.get_nowait()
            except queue.Empty:
                break
            if server is not None and serves != suite:
                server.end()
                server = None
            for name in names:
                if server is None:
                    server, serves = Server(suite), suite
                    if server.answer(60) != "ready\n":
                        server.end()
                        server = None
                        found = {"outcome": "crashed", "text": "it cannot be loaded", "seconds": 0}
                        self.note(suite, name, found, again)
                        continue
                limit = self.options.limit
                if is_expected(f"{suite}:{name}", self.reasons):
                    limit = min(limit, EXPECTED_LIMIT)
                found = server.run(name, limit)
                self.note(suite, name, found, again)
                if found["outcome"] in ("hung", "crashed"):
                    server.end()
                    server = None
        if server is not None:
            server.end()

    def all(self):
        workers = [threading.Thread(target=self.work) for _ in range(self.options.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for full, found in sorted(self.results.items()):
            if found["outcome"] not in GOOD and not is_expected(full, self.reasons):
                suite, _, name = full.partition(":")
                self.groups.put((suite, [name]))
        self.work(again=True)


def is_expected(full, reasons):
    return any(fnmatch.fnmatchcase(full, pattern) for pattern in reasons)


def summary(results, reasons):
    """Suite to counts, and what makes the run fail."""
    counts, wrong = {}, []
    for full, found in sorted(results.items()):
        of_suite = counts.setdefault(
            full.partition(":")[0], {"passed": 0, "skipped": 0, "expected": 0, "failed": 0}
        )
        if found["outcome"] == "skipped":
            of_suite["skipped"] += 1
        elif found["outcome"] == "passed":
            of_suite["passed"] += 1
            if is_expected(full, reasons):
                wrong.append(f"{full} passed, and is expected to fail")
        elif is_expected(full, reasons):
            of_suite["expected"] += 1
        else:
            of_suite["failed"] += 1
            wrong.append(f"{full} {found['outcome']}")
    return counts, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", "--method", action="append", choices=SUITES)
    parser.add_argument("--only", default="*", help="names that match this, as the shell does")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a test may take")
    parser.add_argument("--jobs", type=int, default=2, help="how many tests run side by side")
    parser.add_argument("--list", action="store_true", help="only name the tests")
    parser.add_argument("--table", metavar="FILE", help="add rows of a Markdown table to a file")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    # Shells have what they start in the background ignore it, and some tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.monotonic()
    reasons = expected(HERE / "expected.txt")
    run = Run(options, reasons)
    for suite in options.suite or SUITES:
        names = [name for name in names_of(suite) if fnmatch.fnmatchcase(name, options.only)]
        if options.list:
            print("\n".join(f"{suite}:{name}" for name in names))
        run.take(suite, names)
    if options.list:
        return
    run.all()
    counts, wrong = summary(run.results, reasons)
    version = ".".join(map(str, sys.version_info[:3]))
    for suite, of_suite in counts.items():
        print(f"{version} {suite}: " + ", ".join(f"{n} {kind}" for kind, n in of_suite.items()))
    print(f"{version}: {time.monotonic() - start:.0f} s")
    if options.table:
        with open(options.table, "a") as table:
            for suite, of_suite in counts.items():
                cells = " | ".join(str(of_suite[kind]) for kind in of_suite)
                table.write(f"| {version} | {suite} | {cells} |\n")
    if wrong:
        print("\n".join(wrong))
        sys.exit(1)


if __name__ == "__main__":
    main()

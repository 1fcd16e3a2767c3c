"""Runs the interpreter's own tests of `multiprocessing` against this package.

    python conformance.py [--method fork] [--only PATTERN] [--limit SECONDS] [--list]

The tests are loaded from the interpreter at run time, with `multiprocessing` replaced; none of
their text is kept here. Each has a hard time limit. What is expected to fail stands in
`expected.txt`, with its reason; anything else that fails fails the run, and so does an expected
failure that passes.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
METHODS = ("fork", "spawn", "forkserver")


def load(method):
    """The tests under one start method, by name."""
    from bunshin import _replace

    _replace.install()
    import importlib
    import unittest

    # A module that children can import, as what they run is found by its name.
    module = importlib.import_module(f"suite_{method}")
    loader = unittest.TestLoader()
    tests = {}

    def add(item):
        if isinstance(item, unittest.TestSuite):
            for part in item:
                add(part)
        else:
            tests[".".join(item.id().rsplit(".", 2)[1:])] = item

    for name in dir(module):
        case = getattr(module, name)
        if isinstance(case, type) and issubclass(case, unittest.TestCase):
            add(loader.loadTestsFromTestCase(case))
    return module, tests


def serve(method):
    """Runs the tests named on standard input; says on descriptor 3 how each went."""
    import unittest

    module, tests = load(method)
    answers = os.fdopen(3, "w", buffering=1)
    os.set_inheritable(3, False)
    getattr(module, "setUpModule", lambda: None)()
    if os.environ.get("CONFORMANCE_LIST"):
        answers.write(json.dumps(sorted(tests)) + "\n")
        return
    answers.write("ready\n")
    last_class = None
    for line in sys.stdin:
        test = tests[line.strip()]
        # Classes have fixtures that a test cannot do without.
        result = unittest.TestResult()
        if type(test) is not last_class:
            if last_class is not None:
                last_class.tearDownClass()
                last_class.doClassCleanups()
            last_class = type(test)
            last_class.setUpClass()
        start = time.monotonic()
        test.run(result)
        bad = result.errors + result.failures
        outcome = "failed" if bad else "skipped" if result.skipped else "passed"
        text = bad[0][1] if bad else result.skipped[0][1] if result.skipped else ""
        answers.write(
            json.dumps(
                {"outcome": outcome, "text": text, "seconds": round(time.monotonic() - start, 2)}
            )
            + "\n"
        )
    if last_class is not None:
        last_class.tearDownClass()
    getattr(module, "tearDownModule", lambda: None)()


class Server:
    """A process that runs tests, and is killed with all below it if one takes too long."""

    def __init__(self, method, listing=False):
        answers, theirs = os.pipe()
        environment = dict(os.environ)
        if listing:
            environment["CONFORMANCE_LIST"] = "1"
        move = f"exec {theirs}>&3" if theirs == 3 else f"exec 3>&{theirs} {theirs}>&-"
        self.log = open(pathlib.Path(tempfile.gettempdir()) / "conformance.log", "ab")
        self.process = subprocess.Popen(
            ["bash", "-c", move + '; exec "$@"', "-", sys.executable, __file__, "--serve", method],
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
        while time.monotonic() < deadline:
            if select.select([self.answers], [], [], max(0, deadline - time.monotonic()))[0]:
                return self.answers.readline() or None
        return "late"

    def run(self, name, limit):
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        line = self.answer(limit)
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


def expected(path):
    """Pattern to reason; patterns are `method:Class.test`, as the shell matches names."""
    patterns = {}
    if path.exists():
        for line in path.read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                pattern, _, reason = line.partition("  ")
                patterns[pattern.strip()] = reason.strip()
    return patterns


def run(method, names, limit, verbose):
    results = {}
    server = None
    for name in names:
        if server is None:
            server = Server(method)
            if server.answer(60) != "ready\n":
                server.end()
                sys.exit("the tests cannot be loaded; see conformance.log in the folder for temporary files")
        results[name] = found = server.run(name, limit)
        if verbose or found["outcome"] not in ("passed", "skipped"):
            print(f"{found['outcome']:8} {method}:{name} ({found['seconds']} s)", flush=True)
            if found["outcome"] not in ("passed", "skipped"):
                print("    " + found["text"].strip().replace("\n", "\n    "), flush=True)
        if found["outcome"] in ("hung", "crashed"):
            server.end()
            server = None
    if server is not None:
        server.end()
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", metavar="METHOD", help=argparse.SUPPRESS)
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--only", default="*", help="names that match this, as the shell does")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a test may take")
    parser.add_argument("--list", action="store_true", help="only name the tests")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    reasons = expected(HERE / "expected.txt")
    status = 0
    for method in options.method or METHODS:
        server = Server(method, listing=True)
        names = json.loads(server.answer(60))
        server.end()
        names = [name for name in names if fnmatch.fnmatchcase(name, options.only)]
        if options.list:
            print("\n".join(f"{method}:{name}" for name in names))
            continue
        results = run(method, names, options.limit, options.verbose)
        counts = {}
        for name, found in results.items():
            full = f"{method}:{name}"
            is_expected = any(fnmatch.fnmatchcase(full, pattern) for pattern in reasons)
            is_bad = found["outcome"] not in ("passed", "skipped")
            kind = found["outcome"] + (" as expected" if is_bad and is_expected else "")
            counts[kind] = counts.get(kind, 0) + 1
            if is_bad and not is_expected:
                status = 1
        version = ".".join(map(str, sys.version_info[:3]))
        print(f"{version} {method}: " + ", ".join(f"{n} {k}" for k, n in sorted(counts.items())))
    sys.exit(status)


if __name__ == "__main__":
    main()

"""Runs a program with `multiprocessing` replaced: `python -m bunshin program.py [args]`."""

import os
import runpy
import sys

from . import _replace

__all__ = ()


def main():
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m bunshin [-m module | program.py] [arguments]")
        sys.exit(0 if arguments else 2)
    _replace.install()
    if arguments[0] == "-m":
        if len(arguments) < 2:
            sys.exit("python -m bunshin: -m wants the name of a module")
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        # As the interpreter has it: the program may change to another folder.
        path = os.path.abspath(arguments[0])
        sys.path[0] = os.path.dirname(path)
        runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main()

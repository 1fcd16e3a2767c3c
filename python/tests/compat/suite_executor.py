"""The interpreter's own tests of its process pool executor, with this package's in its place."""

import concurrent.futures

import bunshin

concurrent.futures.ProcessPoolExecutor = bunshin.ProcessPoolExecutor

from suite_futures import *  # noqa: E402, F403

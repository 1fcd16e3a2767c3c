"""What an idle pool takes, as a row beside the others; `memory.py` says it in MB."""

import pathlib
import subprocess
import sys

from compare import row

MEMORY = pathlib.Path(__file__).resolve().with_name("memory.py")


@row("idle pool of 8 workers, how many in a GB", 1, rounds=1)
def idle(mp):
    package = type(mp).__module__.partition(".")[0]
    command = [sys.executable, str(MEMORY), "--side", package]
    command += ["--method", mp.get_start_method(), "--workers", "8"]

    def run(_seconds):
        return 1e9 / int(subprocess.check_output(command))

    return run, lambda: None

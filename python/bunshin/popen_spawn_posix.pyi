# Children that are new interpreters: of the same types as in `multiprocessing`.

from multiprocessing.popen_spawn_posix import (
    Popen as Popen,
)

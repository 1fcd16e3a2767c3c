# Children that the server starts: of the same types as in `multiprocessing`.

from multiprocessing.popen_forkserver import (
    Popen as Popen,
)

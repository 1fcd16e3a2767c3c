# Pipes, listeners and clients: of the same types as in `multiprocessing`.

from multiprocessing.connection import (
    answer_challenge as answer_challenge,
    Client as Client,
    Connection as Connection,
    Listener as Listener,
    Pipe as Pipe,
    wait as wait,
)

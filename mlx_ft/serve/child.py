"""A training job's process: `train` that ends itself well when the server is gone.

The server holds the other end of this process's standard input. When that end closes, by whatever
death of the server, the training is told to stop as by SIGTERM: it saves itself and can go on. One
that was told before is not told again, which would end it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from mlx_ft.interrupt import StopSignal


def follow_parent() -> None:
    """From now on stop when standard input ends, unless a signal was noted before."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        if not StopSignal.noted:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    follow_parent()
    from mlx_ft.main import main

    sys.exit(main(sys.argv[1:]))

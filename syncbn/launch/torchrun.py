"""torchrun with the variables of a newer one: `python -m syncbn.launch.torchrun <torchrun's arguments>`.

`PET_SIGNALS_TO_HANDLE`, the signals that it passes on to its ranks, is read since torch 2.9, and
`PET_SHUTDOWN_TIMEOUT`, the seconds that they have to save, since 2.13.
"""

import os
import signal

from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import main


def read_variables() -> None:
    """Let torchrun in this process read both variables on an older torch, too.

    Raises:
        ValueError: one isn't a list of signals, or a number of seconds.
    """
    signals, seconds = os.environ.get("PET_SIGNALS_TO_HANDLE"), os.environ.get("PET_SHUTDOWN_TIMEOUT")
    if signals and not hasattr(LaunchConfig, "signals_to_handle"):
        from syncbn.norm.core.compat import let_agent_handle  # imported late: a newer torch needs no part of it

        names = [name.strip() for name in signals.split(",")]
        if unknown := [name for name in names if name not in signal.Signals.__members__]:
            raise ValueError(f"PET_SIGNALS_TO_HANDLE has {unknown[0]!r}; signals are named SIGTERM, SIGUSR1 ...")
        let_agent_handle([signal.Signals[name] for name in names])
    if seconds and not hasattr(LaunchConfig, "shutdown_timeout"):
        from syncbn.norm.core.compat import let_agent_wait

        if not seconds.isdigit():
            raise ValueError(f"PET_SHUTDOWN_TIMEOUT is a whole number of seconds, got {seconds!r}")
        let_agent_wait(int(seconds))


if __name__ == "__main__":
    read_variables()
    main()

"""Ports of this machine for servers that tests start."""

from __future__ import annotations

import os
import random
import socket

LOWEST, PER_WORKER = 20_000, 100
"""All below the ports that the system gives to whoever asks for any."""


def free_port() -> int:
    """A free port for a server that starts later. Meanwhile no other worker process of the tests is given it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = LOWEST + PER_WORKER * (worker % 100)
    for port in random.SystemRandom().sample(range(first, first + PER_WORKER), PER_WORKER):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {first} to {first + PER_WORKER - 1} is free")

"""Claims about Ctrl-C."""

from __future__ import annotations

import subprocess
import sys

SWALLOWS = """
import os, signal
from lsplat_ns.interrupts import note_interrupts, raise_if_interrupted
note_interrupts()
raise_if_interrupted()
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("not raised")
except:
    pass
try:
    raise_if_interrupted()
    print("lost")
except KeyboardInterrupt:
    print("known")
"""


def test_an_interrupt_that_a_library_swallows_is_not_lost() -> None:
    outcome = subprocess.run([sys.executable, "-c", SWALLOWS], capture_output=True, text=True, check=False, timeout=60)
    assert outcome.stdout.split() == ["known"], outcome.stderr

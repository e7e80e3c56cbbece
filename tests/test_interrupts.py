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


CHILD = """
import os, signal, subprocess, sys
from lsplat_ns.interrupts import children_leave_interrupts_to_us
caught = []
signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
with children_leave_interrupts_to_us():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    os.kill(os.getpid(), signal.SIGINT)
    assert not caught
assert caught  # put off, not lost
child.send_signal(signal.SIGINT)
child.communicate(b"\\n", timeout=30)
print(child.returncode)
"""


def test_worker_processes_never_see_ctrl_c_and_ours_is_put_off() -> None:
    outcome = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False, timeout=60)
    assert outcome.stdout.split() == ["0"], outcome.stderr

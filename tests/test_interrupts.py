"""Claims about Ctrl-C and SIGTERM."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


UNWINDS = """
import os, signal
from lsplat_ns.interrupts import termination_unwinds, termination_waits
with termination_unwinds():
    try:
        with termination_waits():
            os.kill(os.getpid(), signal.SIGTERM)
            print("goes on", flush=True)
        print("lost", flush=True)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # some launchers send it twice
        print("cleaned up", flush=True)
"""


def test_termination_waits_for_what_must_be_whole_and_then_cleans_up_once() -> None:
    outcome = subprocess.run([sys.executable, "-c", UNWINDS], capture_output=True, text=True, check=False, timeout=60)
    assert outcome.stdout.splitlines() == ["goes on", "cleaned up"], outcome.stderr
    assert outcome.returncode == 143


ANSWERED = """
import os, signal, threading
from lsplat_ns.interrupts import termination_unwinds, termination_waits
def inside():
    with termination_unwinds(), termination_waits():
        return signal.getsignal(signal.SIGTERM)
seen = []
thread = threading.Thread(target=lambda: seen.append(inside()))
thread.start(), thread.join()
assert seen == [signal.SIG_DFL]
assert inside() != signal.SIG_DFL == signal.getsignal(signal.SIGTERM)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
assert inside() == signal.SIG_IGN == signal.getsignal(signal.SIGTERM)
"""


def test_a_programs_own_answer_to_termination_and_other_threads_are_left_alone() -> None:
    outcome = subprocess.run([sys.executable, "-c", ANSWERED], capture_output=True, text=True, check=False, timeout=60)
    assert outcome.returncode == 0, outcome.stderr


ENDED = """
import os, signal, sys
from lsplat_ns.interrupts import end_when_terminated
signal.signal(getattr(signal, sys.argv[1]), signal.SIG_DFL)  # nohup has it ignored
end_when_terminated()
try:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    print("goes on")
finally:
    print("cleaned up")
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_program_that_is_terminated_cleans_up_after_itself(name: str, code: int) -> None:
    words = [sys.executable, "-c", ENDED, name]
    outcome = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert outcome.stdout.splitlines() == ["cleaned up"] and outcome.returncode == code, outcome.stderr

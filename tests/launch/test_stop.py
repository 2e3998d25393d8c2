"""Signals end a starting run, are recorded during training, and don't affect forked workers."""

import os
import signal
import subprocess
import sys
import time

import pytest

from syncbn.launch import stop

SETUP = """
import os, signal, subprocess, sys, time
from syncbn.launch import stop
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # should the tests run under nohup
stop.install()
def noted(seconds=10):
    end = time.monotonic() + seconds
    while not stop.requested() and time.monotonic() < end:
        time.sleep(0.01)
    return stop.requested()
"""


def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python code that has the signals installed."""
    environment = {**os.environ, "SYNCBN_RUN_ID": "r", **environ}
    command = [sys.executable, "-c", SETUP + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.parametrize("signum", stop.SIGNALS, ids=[signum.name for signum in stop.SIGNALS])
def test_a_run_that_starts_ends_at_once_and_says_how_to_go_on(signum: signal.Signals) -> None:
    done = run(f"os.kill(os.getpid(), {signum})\ntime.sleep(60)")
    assert done.returncode == 128 + signum
    assert done.stderr.count(f"stopped by {signum.name} before training; to go on, add run_id=r resume=auto") == 1


def test_even_while_the_main_thread_is_in_c(tmp_path: object) -> None:
    """Python's own handlers would wait until the C code returns."""
    code = "import threading\nlock = threading.Lock(); lock.acquire()\n"
    code += "subprocess.Popen(['sh', '-c', f'sleep 0.2; kill -TERM {os.getpid()}'])\nlock.acquire()"
    assert run(code).returncode == 128 + signal.SIGTERM


def test_a_run_that_trains_takes_a_note_and_other_ranks_say_nothing() -> None:
    done = run("stop.defer()\nos.kill(os.getpid(), signal.SIGTERM)\nprint(noted())\nstop.obey()")
    assert done.stdout.strip() == str(int(signal.SIGTERM))
    assert done.returncode == 128 + signal.SIGTERM
    assert "resume=auto" in done.stderr
    ranks = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    quiet = run("os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)", RANK="1", LOCAL_RANK="1", **ranks)
    assert (quiet.returncode, quiet.stderr) == (128 + signal.SIGTERM, "")


def test_the_first_signal_counts_and_only_a_later_ctrl_c_is_impatient() -> None:
    code = "stop.defer()\nfor signum in (signal.SIGINT, signal.SIGINT, signal.SIGTERM): os.kill(os.getpid(), signum)\n"
    done = run(code + "time.sleep(1.2)\nprint(stop.requested())\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    assert done.stdout.strip() == str(int(signal.SIGINT))
    assert done.returncode == 128 + signal.SIGINT
    assert "stopped by SIGINT at once" in done.stderr


def test_a_forked_worker_has_signals_of_its_own() -> None:
    """It survives signals to the rank's process group, and its own signals aren't recorded as the rank's."""
    code = """
stop.defer()
from multiprocessing import get_context
worker = get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
time.sleep(0.2)
for warning in stop.WARNINGS:
    os.kill(worker.pid, warning)
os.kill(worker.pid, signal.SIGINT)
time.sleep(0.2)
print(stop.requested(), worker.is_alive())
os.killpg(os.getpgid(0), signal.SIGTERM)
print(noted(), worker.is_alive())
worker.terminate()
worker.join(5)
print(worker.exitcode)
"""
    done = subprocess.run(
        [sys.executable, "-c", SETUP + code], capture_output=True, text=True, start_new_session=True, check=False
    )
    assert done.stdout.split() == ["0", "True", "15", "True", "-15"], done.stderr


def test_a_signal_waits_for_a_rank_that_has_not_begun_to_listen() -> None:
    code = """
rank = "from syncbn.launch import stop; import time; time.sleep(0.5); stop.install(); time.sleep(60)"
with stop.held():
    process = subprocess.Popen([sys.executable, "-c", rank], stderr=subprocess.PIPE, text=True)
time.sleep(0.1)
process.terminate()
print(process.communicate()[1].count("resume=auto"), process.returncode)
"""
    assert run(code).stdout.split() == ["1", str(128 + signal.SIGTERM)]


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    code = "import os, signal\nfrom syncbn.launch import stop\nstop.install()\nos.kill(os.getpid(), signal.SIGHUP)\n"
    code += "import time; time.sleep(0.5)\nprint('goes on', stop.requested())"
    command = ["nohup", sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "goes on 0\n"


def test_what_was_there_before_is_given_back() -> None:
    before = [signal.getsignal(signum) for signum in stop.SIGNALS]
    assert stop.install()
    assert not stop.install()
    stop.defer()
    os.kill(os.getpid(), signal.SIGUSR1)
    end = time.monotonic() + 10
    while not stop.requested() and time.monotonic() < end:
        time.sleep(0.01)
    assert stop.requested() == signal.SIGUSR1
    stop.restore()
    assert stop.requested() == 0
    assert [signal.getsignal(signum) for signum in stop.SIGNALS] == before

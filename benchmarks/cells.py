"""One measurement in a process of its own, which is stopped at a limit of time or memory.

A cell of a table is a command that prints what it has found as lines of JSON. What it has
printed before it is stopped is a result too, and so is the limit that stopped it.
"""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LIMIT_GB = 8.0  # GB are 2^30 bytes here
OVER_MEMORY = f"over {LIMIT_GB:g} GB"
_NO_MEMORY = "allocate memory", "RESOURCE_EXHAUSTED", "Out of memory"


def clock_of(processor_time: bool) -> Callable[[], float]:
    """The clock of a cell: seconds that its process computes, or seconds that pass."""
    return time.process_time if processor_time else time.perf_counter


def time_calls(run: Callable[[], float], clock: Callable[[], float]) -> tuple[float, float]:
    """The value of a function, and the median seconds of a call.

    There are at least three calls, and as many as two seconds allow. If one call takes more
    than five seconds, it is the only one.
    """
    seconds: list[float] = []
    began, passed = clock(), 0.0
    while (passed < 2 or len(seconds) < 3) and passed < 5 and len(seconds) < 200:
        start = clock()
        value = run()
        seconds.append(clock() - start)
        passed = clock() - began
    return value, float(np.median(seconds))


def peak_gb(pid: int | str = "self") -> float:
    """The largest memory that a process has occupied so far; 0 if it has ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return _own_peak_gb() if pid == "self" else 0.0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    return 0.0


def reset_peak() -> float:
    """Lets the peak of this process begin anew, where the system can, and returns it."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak_gb()


def _own_peak_gb() -> float:
    """Without /proc: of this process alone, and in bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def measure_apart(
    module: str, arguments: Sequence[str], limit_seconds: float, processor_time: bool
) -> dict[str, Any]:
    """Runs `python -m module arguments`, which prints its findings.

    Returns:
      What it printed, and `process_gb`, the peak memory of the process with all that it has
      imported. If it ended before its time, `stopped` says why.
    """
    command = [sys.executable, "-m", module, *arguments]
    command += ["--processor-time"] * processor_time
    # Threads that wait actively would count as computing.
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if processor_time else {})
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    began = time.monotonic()
    peak, reason = 0.0, None
    while process.poll() is None and reason is None:
        time.sleep(0.02)
        peak = max(peak, peak_gb(process.pid))
        passed = time.monotonic() - began
        if processor_time:
            passed = _processor_seconds(process.pid)
        if peak > LIMIT_GB:
            reason = OVER_MEMORY
        elif passed > limit_seconds:
            reason = f"over {limit_seconds:g} s"
    if reason:
        process.kill()
    out, err = process.communicate()
    found: dict[str, Any] = {"process_gb": peak}
    for line in out.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    if not reason and any(words in err for words in _NO_MEMORY):
        reason = OVER_MEMORY  # refused at once, instead of taken until the limit
    if not reason and process.returncode:
        reason = (err.strip().splitlines() or ["failed"])[-1][:60]
    return found | ({"stopped": reason} if reason else {})


def _processor_seconds(pid: int) -> float:
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

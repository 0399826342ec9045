"""What this process and all others take of the machine's memory and cores."""

from __future__ import annotations

import re
from pathlib import Path

from edge.telemetry.files import text_of


def rss_mb(root: Path = Path("/")) -> float | None:
    """Resident memory of this process, megabytes; None if it cannot be read."""
    match = re.search(r"^VmRSS:\s*(\d+) kB", text_of(root / "proc/self/status") or "", re.MULTILINE)
    return int(match[1]) / 1024 if match else None


def cpu_ticks(root: Path) -> tuple[int, int, int] | None:
    """Clock ticks since boot: of all CPUs, of those not idle, and of this process with its finished children."""
    whole = re.match(r"cpu +([\d ]+)", text_of(root / "proc/stat") or "")
    own = (text_of(root / "proc/self/stat") or "").rpartition(")")[2].split()
    if not whole or len(own) < 15:
        return None
    # user nice system idle iowait irq softirq steal; guest time is within user. Stolen time is another's load: busy.
    ticks = [int(value) for value in whole[1].split()[:8]]
    return sum(ticks), sum(ticks) - sum(ticks[3:5]), sum(int(value) for value in own[11:15])


def loads(before: tuple[int, int, int] | None, now: tuple[int, int, int] | None) -> tuple[float | None, float | None]:
    """Shares of all cores between two `cpu_ticks`, 0 to 1: in total, and by others than this process."""
    if before is None or now is None or now[0] <= before[0]:
        return None, None
    elapsed, busy, own = (b - a for a, b in zip(before, now))
    return min(1.0, busy / elapsed), min(1.0, max(0, busy - own) / elapsed)

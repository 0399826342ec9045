"""Where things are kept unless a user says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def default_state() -> Path:
    """Where the daemon keeps its ledger unless told: the XDG state directory of its user."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "mdconv-edge"

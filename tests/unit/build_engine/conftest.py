from __future__ import annotations

import pytest
from random_networks import random_checkpoint

from mdconv.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """MD-Conv in layer5, 64 pixels. Shared: do not change it."""
    return random_checkpoint()

from __future__ import annotations

import pytest

from mdconv.checkpoint import Checkpoint
from tests.unit.build_engine.random_networks import random_checkpoint


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """MD-Conv in layer5, 64 pixels. Shared: do not change it."""
    return random_checkpoint()

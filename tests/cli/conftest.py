"""A checkpoint that loads in no time."""

from __future__ import annotations

import pytest
from tiny import TINY, seeded_model

from trex2_mini.checkpoint import save_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, seeded_model(), TINY)
    return folder

"""What several tests share."""

import sys

import pytest
from fakes import PaintedModel, WatchedAvatar
from loguru import logger


@pytest.fixture(autouse=True, scope="session")
def quiet_log():
    """Show only warnings of Pipecat: it logs every frame."""
    logger.remove()
    logger.add(sys.stderr, level="WARNING")


@pytest.fixture
def avatar():
    with WatchedAvatar.of(PaintedModel()) as avatar:
        yield avatar

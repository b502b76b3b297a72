"""Fixtures: the server, rooms of it, and an avatar without a model."""

import secrets

import pytest
from support.fake_avatar import fake_avatar
from support.servers import open_server
from support.stage import House

from letstalk_rt import Avatar


@pytest.fixture(scope="session")
def server():
    with open_server() as opened:
        yield opened


@pytest.fixture
def avatar() -> Avatar:
    with fake_avatar() as loaded:
        yield loaded


@pytest.fixture
async def house(server):
    """A room of its own for each test; everybody leaves it at the end."""
    async with House(server, f"test-{secrets.token_hex(4)}") as opened:
        yield opened

"""What is written to the system's folder for temporary files does not stay there."""

import gc
import tempfile

import pytest
from support.server_fakes import serving


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder, which is the one for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def start_and_stop(temporary):
    async with serving() as (_, client):
        assert (await client.get("/v1/avatars")).json()["avatars"]
        assert list(temporary.iterdir()), "the painted avatars are files"


async def test_a_server_that_was_stopped_leaves_no_file(temporary):
    await start_and_stop(temporary)
    gc.collect()
    assert not list(temporary.iterdir())

"""A small data folder."""

import pytest
from support.data_folder import write_data_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data_folder(tmp_path_factory.mktemp("data"))

"""A small data folder, its clips and its stills."""

import pytest
from support.data_folder import (
    write_data_folder,
    write_stills,
)

from letstalk_rt.training.data.dataset import load_clips, load_stills


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_stills(folder)
    return folder


@pytest.fixture(scope="module")
def clips(root, cache):
    return load_clips(root, cache, "train")


@pytest.fixture(scope="module")
def stills(root, cache):
    return load_stills(root, cache, "train")

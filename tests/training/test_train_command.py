"""`letstalk train` names what is missing."""

import pytest

from letstalk_rt.cli.train import main as train
from letstalk_rt.errors import ConfigError, InputError


class TestCommand:
    def test_an_unknown_device_is_named(self, root, cache, tmp_path):
        with pytest.raises(ConfigError, match="device must be"):
            train(["finder", "--data", str(root), "--cache", str(cache), "--runs", str(tmp_path),
                   "--threads", "1", "--device", "abacus"])  # fmt: skip

    def test_a_stage_that_was_not_run_is_named(self, root, cache, tmp_path):
        with pytest.raises(InputError, match="run that stage first"):
            train(["export", "--data", str(root), "--cache", str(cache), "--runs", str(tmp_path),
                   "--threads", "1"])  # fmt: skip

    def test_surroundings_alone_need_a_denoiser_to_go_on_with(self, root, tmp_path):
        with pytest.raises(InputError, match="name its run with --start"):
            train(["flow", "--data", str(root), "--runs", str(tmp_path), "--threads", "1",
                   "--surroundings"])  # fmt: skip

    def test_a_wrong_folder_is_named(self, tmp_path):
        with pytest.raises(InputError, match="no clips.jsonl"):
            train(["autoencoder", "--data", str(tmp_path), "--threads", "1"])

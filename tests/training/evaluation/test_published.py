"""Published metrics: known distributions, toy networks in place of the published ones, refusals."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from support.golden import sample, wave
from support.small_model import make_speech
from torch import Tensor, nn

from letstalk_rt.cli.evaluate import main as evaluate
from letstalk_rt.errors import InputError, WeightsError
from letstalk_rt.training.evaluation.published import (
    PublishedMetrics,
    PublishedSync,
    ScriptDistance,
    ScriptFeatures,
    frechet_distance,
    identity_of,
    mfcc,
    sync_of_features,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Means(nn.Module):
    """The mean colour of images or clips."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class Bytes(nn.Module):
    """The same, with the option of the published networks."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return x.flatten(2).mean(2)


class Gap(nn.Module):
    """The mean difference of two images."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


class ToySync(nn.Module):
    """Brightness of the middle frame, and energy of the sound in its middle."""

    @torch.jit.export
    def forward_lip(self, x: Tensor) -> Tensor:
        return x[:, :, 2].flatten(1).mean(1, keepdim=True) / 255

    @torch.jit.export
    def forward_aud(self, x: Tensor) -> Tensor:
        return (x[:, 0, 0, 8:12].mean(1, keepdim=True) > 5).float()


@pytest.fixture
def file(tmp_path):
    def write(network: nn.Module):
        path = tmp_path / "network.pt"
        torch.jit.script(network).save(str(path))
        return path

    return write


def test_the_distance_of_normal_distributions_is_the_closed_form():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    sizes_a, sizes_b, move = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5]), np.ones(3)
    a = rng.normal(size=(200_000, 3)) * sizes_a @ turn
    b = (rng.normal(size=(200_000, 3)) * sizes_b + move) @ turn
    wanted = 3 + ((sizes_a - sizes_b) ** 2).sum()  # covariances with the same axes
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_covariances_with_other_axes_need_the_root_of_their_product():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    eigenvalues = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))
    wanted = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.sqrt(eigenvalues.real).sum()
    wanted += ((a.mean(0) - b.mean(0)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(wanted)


def test_too_few_features_are_refused():
    with pytest.raises(InputError, match="N of at least 2"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


@pytest.mark.parametrize("network, levels", [(Means(), [-1.0, 1.0]), (Bytes(), [0.0, 255.0])])
def test_networks_get_what_they_ask_for(file, network, levels):
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[1] = 255
    features = ScriptFeatures(file(network), "inception")
    assert features(frames)[:, 0].tolist() == pytest.approx(levels)
    clips = np.repeat(frames[:, None], 16, 1)
    assert ScriptFeatures(file(network), "i3d")(clips)[:, 0].tolist() == pytest.approx(levels)


def test_fid_and_fvd_are_nothing_for_the_truth_and_more_for_another_video(file):
    rng = np.random.default_rng(0)
    true = rng.integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    features = ScriptFeatures(file(Means()), "inception"), ScriptFeatures(file(Means()), "i3d")
    same, dark = PublishedMetrics(*features), PublishedMetrics(*features)
    same.add(true, true, np.zeros(0))
    dark.add(true, true // 2, np.zeros(0))
    assert same.figures()["fid"] == pytest.approx(0, abs=1e-8)
    assert (same.figures()["fid_samples"], same.figures()["fvd_samples"]) == (12, 3)
    # Halving moves each of three mean colours by half of 127.5, in units of 127.5.
    assert dark.figures()["fid"] == pytest.approx(3 * 0.5**2, rel=0.05)
    assert dark.figures()["fvd"] == pytest.approx(3 * 0.5**2, rel=0.05)


def test_lpips_is_the_mean_distance_of_frames_in_unit_range(file):
    true = np.full((20, 16, 16, 3), 255, np.uint8)
    metrics = PublishedMetrics(lpips=ScriptDistance(file(Gap())))
    metrics.add(true, true, np.zeros(0))
    metrics.add(true, true * 0, np.zeros(0))
    assert metrics.figures()["lpips"] == pytest.approx(1.0)  # 0 and 2
    with pytest.raises(WeightsError, match="does not take two"):
        ScriptDistance(file(Means()))(true, true)


def test_expressions_are_compared_and_networks_are_named(file):
    path = file(Means())
    true = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    metrics = PublishedMetrics(
        expression=ScriptFeatures(path, "expression"), networks={"e_fid": identity_of(path)}
    )
    metrics.add(true, true // 2, np.zeros(0))
    figures = metrics.figures()
    assert figures["e_fid"] == pytest.approx(3 * 0.5**2, rel=0.05)
    digest = sha256(path.read_bytes()).hexdigest()
    assert figures["e_fid_network"] == f"{path.name} sha256:{digest[:16]}"


def test_sync_is_the_least_distance_and_its_gap_to_the_median():
    lips = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    confidence, distance, offset = sync_of_features(lips, lips)
    assert distance == pytest.approx(0, abs=1e-4) and confidence > 3 and offset == 0
    late = torch.cat([torch.zeros(4, 8), lips[:-4]])
    assert sync_of_features(lips, late)[2] == 4
    assert sync_of_features(lips, torch.zeros(60, 8))[0] == pytest.approx(0, abs=1e-5)


def test_sync_finds_the_moment_at_which_light_and_sound_agree(file):
    on = np.random.default_rng(0).random(75) > 0.5
    frames = np.repeat(on.astype(np.uint8) * 255, 8 * 8 * 3).reshape(75, 8, 8, 3)
    loud = np.repeat(on, 640) * np.random.default_rng(1).normal(size=75 * 640) * 0.3
    sync = PublishedSync(file(ToySync()))
    _, distance, offset = sync(frames, loud.astype(np.float32))
    assert offset == 0 and distance < 0.3
    assert sync(frames, np.roll(loud, 3 * 640).astype(np.float32))[2] == 3


# python_speech_features 0.6: mfcc(32768 * pcm, 16000) of the audio below, printed by `sample`
REFERENCE_MFCC = [
    23.5618,
    -6.6929,
    -11.7765,
    -2.3467,
    -7.2785,
    -2.1165,
    5.3505,
    -1.5491,
    -3.8492,
    12.1171,
]


def test_cepstra_are_those_that_syncnet_was_trained_on():
    made = torch.from_numpy(mfcc((0.3 * wave(16000)).numpy()))
    assert sample(made) == pytest.approx(REFERENCE_MFCC, abs=1e-3)
    cepstra = mfcc(make_speech(1.0))
    assert cepstra.shape == (99, 13) and np.isfinite(cepstra).all()
    louder = mfcc(2 * make_speech(1.0))
    np.testing.assert_allclose(louder[:, 0] - cepstra[:, 0], np.log(4), atol=1e-6)
    np.testing.assert_allclose(louder[:, 1:], cepstra[:, 1:], atol=1e-6)


class TestRefusals:
    def test_a_missing_file_is_named_before_anything_is_loaded(self, tmp_path):
        for option in ("--inception", "--i3d", "--syncnet"):
            with pytest.raises(WeightsError, match="this metric needs its published network"):
                evaluate(["--data", str(tmp_path), option, str(tmp_path / "none.pt")])

    def test_another_file_is_refused(self, tmp_path):
        path = tmp_path / "weights.pt"
        path.write_bytes(b"nonsense")
        with pytest.raises(WeightsError, match="not TorchScript; export inception"):
            ScriptFeatures(path, "inception")

    def test_a_network_without_syncnets_methods_is_refused(self, file):
        with pytest.raises(WeightsError, match="not SyncNet: it has no method 'forward_lip'"):
            PublishedSync(file(Means()))

    def test_a_network_of_another_output_is_refused(self, file):
        network = ScriptFeatures(file(nn.Identity()), "inception")
        with pytest.raises(WeightsError, match=r"must return features \(N, F\)"):
            network(np.zeros((2, 32, 32, 3), np.uint8))

"""The published model end to end on a toy: clips, training, a weights file, a video."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.data_folder import write_data_folder, write_flac
from support.small_model import make_speech, stir
from support.small_paper_model import make_paper_model, make_preset

from letstalk_rt.avatars import list_avatars
from letstalk_rt.cli.evaluate import main as evaluate
from letstalk_rt.cli.main import main as letstalk
from letstalk_rt.cli.train import main as train
from letstalk_rt.errors import ConfigError, InputError, WeightsError
from letstalk_rt.models.audio_encoder.projector import AudioProjectorConfig
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2Stream
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.paper.checkpoints import (
    check_companions,
    load_paper_model,
    save_paper_model,
)
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.kl_ae import KLAutoencoder
from letstalk_rt.paper.presets import PAPER_PRESETS
from letstalk_rt.paper.rendering import FaithfulRenderer, FaithfulSampling
from letstalk_rt.paper.wav2vec_whole import WholeWav2Vec2

transformers = pytest.importorskip("transformers", reason="the extra `paper` is not installed")
pytest.importorskip("diffusers", reason="the extra `paper` is not installed")

LAYERS, WIDTH = 2, 16
SMALL = {"widths": (32,) * 6, "encoder_layers": (1,) * 6, "decoder_layers": (1,) * 6}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Random networks of the two kinds, as folders in their libraries' formats."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    DCAutoencoder.random(64, **SMALL).inner.save_pretrained(folder / "dc")
    kl = KLAutoencoder.random(64, widths=(8,) * 4, layers=1, norm_groups=4).inner
    kl.save_pretrained(folder / "kl")
    shape = transformers.Wav2Vec2Config(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(16,) * 7,
    )
    model = transformers.Wav2Vec2Model(shape).eval()
    stir(model)
    model.save_pretrained(folder / "w2v")
    return folder


TOYS = {
    "toy": make_preset(channels=32, side=2),
    "v1-toy-2": make_preset(side=8, patch=2, attention="softmax", memory=0),
}
PROJECTOR = AudioProjectorConfig(
    reach=2, layers=LAYERS, feature_width=WIDTH, hidden=16, tokens=3, token_width=16
)
AUTOENCODERS = {"toy": "dc", "v1-toy-2": "kl"}


@pytest.fixture
def presets(monkeypatch):
    for name, plain in TOYS.items():
        shapes = replace(plain, name=name, projector=PROJECTOR, steps=3)
        monkeypatch.setitem(PAPER_PRESETS, name, shapes)


@pytest.fixture
def preset(presets):
    return "faithful-toy"


def options(networks, autoencoder="dc"):
    return ["--autoencoder", str(networks / autoencoder), "--wav2vec", str(networks / "w2v"),
            "--device", "cpu", "--threads", "1"]  # fmt: skip


@pytest.mark.parametrize("name", sorted(TOYS))
def test_clips_become_a_weights_file_and_that_a_video(root, networks, presets, name, tmp_path):
    preset, given = f"faithful-{name}", options(networks, AUTOENCODERS[name])
    common = ["faithful", "--data", str(root), "--runs", str(tmp_path), "--preset", preset]
    train([*common, *given, "--steps", "2", "--batch", "2"])
    weights = tmp_path / "faithful" / "model.safetensors"
    assert weights.exists()
    sample = tmp_path / "faithful" / "sample-anna-GRID-1-000002.mp4"  # anna is held out
    with av.open(str(sample)) as container:
        assert container.streams.audio
        shown = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert shown[0].shape == (64, 128, 3) and len(shown) % 4 == 0  # true beside generated
    assert np.abs(shown[-1][:, :64].astype(int) - shown[-1][:, 64:]).mean() > 0
    before = torch.load(tmp_path / "faithful" / "last.pt", weights_only=True)
    train([*common, *given, "--steps", "3", "--batch", "2"])  # it resumes
    after = torch.load(tmp_path / "faithful" / "last.pt", weights_only=True)
    assert (before["step"], after["step"]) == (2, 3)
    assert after["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    best = torch.load(tmp_path / "faithful" / "best.pt", weights_only=True)
    kept = load_paper_model(PAPER_PRESETS[name], tmp_path / "faithful" / "best.safetensors")
    assert all(torch.equal(value, best[key]) for key, value in kept.state_dict().items())

    write_flac(tmp_path / "speech.flac", make_speech(0.4))
    for sampler in ("ddpm", "ddim"):
        output = tmp_path / f"{sampler}.mp4"
        words = ["render", str(list_avatars()["mira"]), str(tmp_path / "speech.flac")]
        words += ["-o", str(output), "--preset", preset, "--sampler", sampler, "--size", "256"]
        words += ["--weights", str(weights), *given]
        status = letstalk(words)
        assert status == 0
        with av.open(str(output)) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(frames) == 10 and max(frames[0].shape) == 256
        assert any(not np.array_equal(frame, frames[0]) for frame in frames)


def test_whole_utterances_are_heard_as_transformers_hears_them(networks):
    """Hidden states of all layers against transformers' own, run as published."""
    model = transformers.Wav2Vec2Model.from_pretrained(networks / "w2v").eval()
    pcm = torch.from_numpy(make_speech(1.2))[None]
    made = WholeWav2Vec2(Wav2Vec2Stream.load(networks / "w2v"))(pcm)
    frames = pcm.shape[1] // 640
    with torch.no_grad():
        unit = (pcm - pcm.mean()) / torch.sqrt(pcm.var(unbiased=False) + 1e-7)
        features = torch.nn.functional.interpolate(
            model.feature_extractor(unit), size=frames, mode="linear", align_corners=True
        )
        states = []
        hooks = [
            layer.register_forward_hook(lambda m, i, o: states.append(o))
            for layer in model.encoder.layers
        ]
        model.encoder(model.feature_projection(features.transpose(1, 2))[0])
        for hook in hooks:
            hook.remove()
    assert made.shape == (1, frames, LAYERS, WIDTH)
    torch.testing.assert_close(made, torch.stack(states, 2), atol=1e-5, rtol=1e-4)


def test_what_is_missing_is_named(root, networks, preset, tmp_path):
    common = ["faithful", "--data", str(root), "--runs", str(tmp_path), "--threads", "1"]
    with pytest.raises(ConfigError, match="choose --preset faithful-s"):
        train([*common, "--preset", "b"])
    with pytest.raises(InputError, match="set --wav2vec"):
        train([*common, "--preset", preset, "--autoencoder", str(networks / "dc")])


@pytest.mark.parametrize("name, autoencoder", [("toy", "kl"), ("v1-toy-2", "dc")])
def test_the_autoencoder_of_the_other_version_is_refused(
    root, networks, presets, name, autoencoder, tmp_path
):
    expected = {"kl": "AutoencoderDC", "dc": "AutoencoderKL"}[autoencoder]
    with pytest.raises(WeightsError, match=f"expected {expected}"):
        train(["faithful", "--data", str(root), "--runs", str(tmp_path), "--preset",
               f"faithful-{name}", *options(networks, autoencoder)])  # fmt: skip


def test_weights_are_refused_with_other_networks_than_they_were_trained_with(networks, tmp_path):
    path = tmp_path / "w.safetensors"
    model = make_paper_model(side=8)
    vae = KLAutoencoder.load(networks / "kl", 64)
    speech = WholeWav2Vec2(Wav2Vec2Stream.load(networks / "w2v"))
    save_paper_model(model, path)
    with pytest.raises(WeightsError, match="does not say which autoencoder"):
        check_companions(path, vae, speech)
    save_paper_model(model, path, vae, speech)
    check_companions(path, vae, speech)
    vae.scaling_factor *= 2
    with pytest.raises(WeightsError, match="another scaling factor: 0.18215, got 0.3643"):
        check_companions(path, vae, speech)
    with pytest.raises(WeightsError, match="another kind: SD-VAE f8c4, got DC-AE f32c32"):
        check_companions(path, DCAutoencoder.load(networks / "dc", 64), speech)
    other = KLAutoencoder.random(64, widths=(8,) * 4, layers=1, norm_groups=4)
    with pytest.raises(WeightsError, match="other weights of SD-VAE"):
        check_companions(path, other, speech)
    with torch.no_grad():
        vae.scaling_factor /= 2
        encoder = Wav2Vec2Stream.load(networks / "w2v")
        next(encoder.parameters()).mul_(2)
    with pytest.raises(WeightsError, match="another wav2vec 2.0"):
        check_companions(path, vae, WholeWav2Vec2(encoder))


@pytest.mark.parametrize("drop_speech", [0.0, 0.1])
def test_guidance_is_refused_by_a_model_that_never_missed_speech(
    networks, presets, drop_speech, tmp_path
):
    path = tmp_path / "w.safetensors"
    torch.manual_seed(0)
    model = PaperModel(PAPER_PRESETS["toy"])
    stir(model)
    vae = DCAutoencoder.load(networks / "dc", 64)
    speech = WholeWav2Vec2(Wav2Vec2Stream.load(networks / "w2v"))
    save_paper_model(model, path, vae, speech, drop_speech)
    places = str(networks / "dc"), str(networks / "w2v"), "cpu"
    renderer = FaithfulRenderer.load("faithful-toy", path, *places)
    portrait = np.zeros((64, 64, 3), np.uint8)

    def first(guidance):
        sampling = FaithfulSampling(2, deterministic=True, guidance=guidance)
        return next(renderer.render(portrait, make_speech(0.2), sampling))

    plain = first(1.0)
    if drop_speech:
        assert not np.array_equal(first(3.0), plain)
    else:
        with pytest.raises(ConfigError, match="train it with --drop-speech"):
            first(3.0)


def test_a_model_is_evaluated_at_its_own_size(networks, monkeypatch, tmp_path):
    """Clips of 320 px, a model of 320 px: nothing on the way has 256."""
    preset = replace(make_preset(channels=32, side=10), name="large-toy", projector=PROJECTOR)
    monkeypatch.setitem(PAPER_PRESETS, "large-toy", preset)
    torch.manual_seed(0)
    vae = DCAutoencoder.load(networks / "dc", 320)
    speech = WholeWav2Vec2(Wav2Vec2Stream.load(networks / "w2v"))
    weights = tmp_path / "w.safetensors"
    save_paper_model(PaperModel(preset), weights, vae, speech)
    data = write_data_folder(tmp_path / "data", size_px=320)
    words = ["eval", "--data", str(data), "--preset", "faithful-large-toy", "--weights"]
    words += [str(weights), *options(networks)[:6], "--cache", str(tmp_path / "cache"), "--steps"]
    words += ["2", "--sampler", "ddim", "--samples", str(tmp_path / "samples"), "--json"]
    from support.toy_command import toys

    with toys(), redirect_stdout(io.StringIO()) as printed:
        assert letstalk(words) == 0
    figures = json.loads(printed.getvalue().splitlines()[-1])
    assert figures["size_px"] == 320 and figures["psnr_generated"] > 0
    assert figures["identity_network"].startswith("SFace")
    with Image.open(tmp_path / "samples" / "dora-1.png") as sheet:
        assert sheet.height == 2 * 320  # true frames above generated ones
    other = ["--cache", str(tmp_path / "other")]
    with toys(), pytest.raises(InputError, match="prepare the videos again with --size 320"):
        evaluate([*words[1:2], str(write_data_folder(tmp_path / "small")), *words[3:], *other])


class TestAblation:
    def words(self, root, networks, runs, name="toy", *more):
        return ["ablate", "--data", str(root), "--runs", str(runs), "--preset",
                f"faithful-{name}", *options(networks, AUTOENCODERS[name]), "--steps", "2",
                "--batch", "1", "--sampling-steps", "2", *more]  # fmt: skip

    def test_one_command_trains_all_variants_and_writes_one_table(
        self, root, networks, presets, tmp_path
    ):
        train(self.words(root, networks, tmp_path, "toy", "--seeds", "2"))
        table = json.loads((tmp_path / "ablate" / "table.json").read_text())
        names = ["noise and patch drop", "noise", "patch drop", "neither"]
        assert [row["variant"] for row in table["rows"]] == names
        assert [(row["variant"], row["seed"]) for row in table["each"]] == [
            (name, seed) for seed in (0, 1) for name in names
        ]
        assert table["seeds"] == [0, 1] and table["training steps"] == 2
        for row in table["rows"]:
            of_both = [r["error"] for r in table["each"] if r["variant"] == row["variant"]]
            assert row["error"] == pytest.approx(sum(of_both) / 2)
            assert row["error"] > 0 and row["sharpness_last"] > 0
        page = (tmp_path / "ablate" / "table.md").read_text()
        assert all(f"| {name} |" in page for name in names)

    def test_a_model_without_memory_is_refused(self, root, networks, presets, tmp_path):
        with pytest.raises(ConfigError, match="'v1-toy-2' has no memory"):
            train(self.words(root, networks, tmp_path, "v1-toy-2"))

"""Training: the data folder is read as documented, runs resume exactly, losses reach everything."""

import json
import math
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.data_folder import (
    FRAMES,
    face_points,
    frame_level,
    write_data_folder,
    write_stills,
)
from support.small_model import AUTOENCODER, PRESET, make_speech, stir
from torch import nn

from letstalk_rt.cli.train import main as train
from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES, CausalAudioEncoder
from letstalk_rt.models.autoencoder.networks import soft_argmax
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS
from letstalk_rt.training.data import dataset
from letstalk_rt.training.data.audio_features import (
    NUM_MOUTH_TARGETS,
    augment_mel,
    best_lag,
    clip_mel,
    correlation,
    silence_mel,
)
from letstalk_rt.training.data.dataset import affine_augment, color_augment, load_clips, load_stills
from letstalk_rt.training.data.pairs import PairSource
from letstalk_rt.training.data.spoken_clips import audio_clip
from letstalk_rt.training.data.tracks import encode_clips, fit_scales
from letstalk_rt.training.data.windows import AUDIO_CONTEXT_FRAMES, FlowLossConfig, WindowSource
from letstalk_rt.training.evaluation import reconstruction, rollout
from letstalk_rt.training.evaluation.reconstruction import (
    evaluate_reconstruction,
    mouth_box,
    psnr,
    sharpness,
)
from letstalk_rt.training.evaluation.rollout import generate, save_sample
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages import autoencoder
from letstalk_rt.training.stages.audio_encoder import (
    MAX_GAIN,
    MouthReader,
    calibrate,
    split_by_source,
)
from letstalk_rt.training.stages.autoencoder_loss import (
    AutoencoderLossConfig,
    autoencoder_loss,
    heat_loss,
    opening_error,
)
from letstalk_rt.training.stages.flow import train_flow
from letstalk_rt.training.stages.flow_loss import FlowTrainer


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


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestClips:
    def test_split_and_tag_are_respected(self, root, cache):
        names = {split: [c.name for c in load_clips(root, cache, split)] for split in
                 ("train", "eval")}  # fmt: skip
        assert names == {"train": ["anna-GRID-1", "bert-1", "mute-1"], "eval": ["dora-1"]}

    def test_lab_clips_come_only_when_they_are_asked_for(self, root, cache):
        both = load_clips(root, cache, "eval", tags=("ship", "lab"))
        assert [clip.name for clip in both] == ["dora-1", "lent-2"]

    def test_frames_come_in_order_beside_their_tracks(self, clips):
        clip = clips[1]
        assert clip.num_frames == FRAMES and clip.frames.shape == (FRAMES, 256, 256, 3)
        levels = clip.frames[:, :60].mean((1, 2, 3))
        assert np.abs(levels - [frame_level(1, i) for i in range(FRAMES)]).max() < 4
        assert clip.points.shape == (FRAMES, NUM_LANDMARKS, 2) and np.abs(clip.points).max() < 1
        opening = 4 + 4 * np.sin(np.arange(FRAMES))
        assert np.abs(clip.landmarks - face_points(opening)).max() < 0.1
        assert clip.blendshapes.shape == (FRAMES, 52)

    def test_sound_lasts_as_long_as_the_picture(self, clips):
        for clip in clips:
            assert clip.pcm.shape == (FRAMES * 640,) and clip.pcm.dtype == np.float32
        assert np.abs(clips[0].pcm - make_speech(FRAMES / 25, 0)).max() < 1e-3

    def test_a_clip_without_sound_is_silent_and_says_so(self, clips):
        mute = clips[2]
        assert not mute.has_audio and not mute.pcm.any()
        assert clips[0].has_audio and clips[0].pcm.any()

    def test_kind_and_corpus_are_known(self, clips):
        assert [clip.kind for clip in clips] == ["real", "generated", "real"]
        assert [clip.is_grid for clip in clips] == [True, False, False]

    def test_frames_are_decoded_once(self, root, clips, cache, monkeypatch):
        monkeypatch.setattr(dataset, "decode_frames", None)
        again = load_clips(root, cache, "train")
        assert np.array_equal(again[0].frames, clips[0].frames)

    def test_a_missing_list_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"no clips.jsonl in the data folder.*docs/training"):
            load_clips(tmp_path, tmp_path, "train")

    def test_a_broken_list_is_named(self, tmp_path):
        (tmp_path / "clips.jsonl").write_text('{"name": "a"}\n{"name"\n')
        with pytest.raises(InputError, match="clips.jsonl holds a line that is not JSON"):
            load_clips(tmp_path, tmp_path, "train")

    def test_empty_lines_are_passed_over(self, root, tmp_path, cache):
        lines = (root / "clips.jsonl").read_text().replace("\n", "\n\n")
        (tmp_path / "clips.jsonl").write_text(lines)
        (tmp_path / "clips").symlink_to(root / "clips")
        assert len(load_clips(tmp_path, cache, "train")) == 3

    def test_people_set_aside_stay_together(self, clips):
        kept, validation = split_by_source(clips, every=2)
        assert [c.name for c in validation] == ["anna-GRID-1", "mute-1"]
        assert [c.name for c in kept] == ["bert-1"]


class TestStills:
    def test_the_cache_is_read(self, stills):
        assert stills.frames.shape == (3, 320, 320, 3) and stills.landmarks.shape == (3, 478, 2)

    def test_only_the_splits_own_ship_portraits_are_prepared(self, tmp_path, monkeypatch):
        class FixedLandmarker:
            """A landmarker that sees the same face in each picture, but none in a black one."""

            def __init__(self, model):
                pass

            def __call__(self, rgb):
                return face_points(1.0)[0] if rgb.any() else None

        monkeypatch.setattr(dataset, "Landmarker", FixedLandmarker)
        (tmp_path / "portraits").mkdir()
        rows = []
        for level, split, tag in [(10, "train", "ship"), (20, "train", "lab"), (30, "eval", "ship"),
                                  (0, "train", "ship"), (40, "train", "ship")]:  # fmt: skip
            Image.new("RGB", (256, 256), (level,) * 3).save(tmp_path / "portraits" / f"{level}.png")
            rows.append(json.dumps({"file": f"{level}.png", "split": split, "tag": tag}))
        (tmp_path / "portraits.jsonl").write_text("\n".join(rows))
        found = load_stills(tmp_path, tmp_path / "cache", "train")
        assert found.frames[:, 160, 160, 0].tolist() == [10, 40]
        height = np.ptp(found.landmarks[0, :, 1])
        assert height / 320 == pytest.approx(0.557 * 256 / 320, rel=0.01)


class TestAugmentation:
    def test_picture_and_landmarks_move_alike(self):
        axis = torch.arange(256) - 127.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        point = torch.tensor([0.2, -0.3])
        blob = torch.exp(-((x - point[0] * 128) ** 2 + (y - point[1] * 128) ** 2) / 200)
        frames = blob.expand(3, 2, 3, 256, 256)
        moved, placed = affine_augment(
            frames, point.expand(3, 2, 1, 2), generator(), max_scale=0.2, max_turn=0.3
        )
        assert (placed[:, 0] - point).abs().amax() > 0.02
        for item in range(3):
            weight = moved[item, 1, 0]
            found = torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum() / 128
            torch.testing.assert_close(found, placed[item, 1, 0], atol=0.01, rtol=0)

    def test_frames_of_an_item_move_alike_and_items_apart(self):
        frames = torch.rand(2, 1, 3, 256, 256).expand(2, 2, 3, 256, 256)
        moved, placed = affine_augment(frames, torch.zeros(2, 2, 1, 2), generator())
        assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(placed[:, 0], placed[:, 1])
        assert not torch.allclose(placed[0], placed[1])

    def test_colours_stay_in_range(self):
        frames = torch.rand(2, 2, 3, 8, 8) * 2 - 1
        changed = color_augment(frames, generator())
        assert changed.abs().max() <= 1 and not torch.equal(changed, frames)

    def test_some_portraits_are_black_and_white_in_all_their_frames(self):
        frames = torch.rand(200, 1, 3, 2, 2).expand(200, 2, 3, 2, 2) - 0.5
        changed = color_augment(frames, generator())
        assert torch.equal(changed[:, 0], changed[:, 1])
        pixels = changed[:, 0].flatten(2)
        sizes = torch.linalg.svdvals(pixels - pixels.mean(2, keepdim=True))
        of_one_tint = (sizes[:, 1] < 1e-5).sum()
        assert 10 <= of_one_tint <= 45

    def test_pairs_are_decided_by_the_generator(self, clips, stills):
        source = PairSource(clips, stills, 4)
        frames, points = source.draw(generator(3))
        again, _ = source.draw(generator(3))
        assert frames.shape == (4, 2, 3, 256, 256) and points.shape == (4, 2, NUM_LANDMARKS, 2)
        assert torch.equal(frames, again) and frames.abs().max() <= 1
        assert source.mean_points().shape == (NUM_LANDMARKS, 2)

    def test_augmented_sound_stays_in_shape(self):
        mel = clip_mel(make_speech(1.0))[None].repeat(3, 1, 1)
        changed = augment_mel(mel, generator())
        assert changed.shape == mel.shape and changed.isfinite().all()
        assert not torch.allclose(changed[0], changed[1])

    def test_sound_is_followed_by_silence_for_the_look_ahead(self):
        assert clip_mel(np.zeros(10 * 640, np.float32)).shape == (64, 4 * 12)


class TestFigures:
    def test_correlation(self):
        x = np.arange(9.0)
        assert correlation(x, 3 * x + 1) == pytest.approx(1)
        assert correlation(x, -x) == pytest.approx(-1)
        assert correlation(x, np.ones(9)) == 0

    @pytest.mark.parametrize("late", [-3, 0, 4])
    def test_the_best_lag_is_positive_when_the_made_one_is_late(self, late):
        true = np.random.default_rng(0).normal(size=80)
        assert best_lag(np.roll(true, late), true) == (late, pytest.approx(1))

    def test_psnr_of_a_known_error(self):
        true = torch.zeros(2, 3, 4, 4)
        made = torch.stack([true[0] + 0.2, true[1] + 0.02])
        torch.testing.assert_close(psnr(made, true), torch.tensor([20.0, 40.0]))

    def test_blur_lowers_sharpness(self):
        torch.manual_seed(0)
        sharp = torch.rand(1, 3, 32, 32)
        assert sharpness(nn.functional.avg_pool2d(sharp, 3, 1, 1)) < 0.5 * sharpness(sharp)

    def test_the_mouth_box_holds_the_lips(self):
        points = np.zeros((NUM_LANDMARKS, 2), np.float32)
        points[::2] = [0.2, 0.1]
        left, top, right, bottom = mouth_box(points)
        assert left < 128 and top < 128 and right > 128 * 1.2 and bottom > 128 * 1.1

    def test_reconstruction_is_judged_against_the_first_frame(self, clips):
        torch.manual_seed(0)
        model = ReferenceAutoencoder(AUTOENCODER).eval()
        figures = evaluate_reconstruction(model, clips[:1], every=12)
        assert set(figures) == {"psnr", "psnr_mouth", "sharpness_ratio"}
        assert all(math.isfinite(value) for value in figures.values())


class TestLandmarkLosses:
    def test_the_target_map_of_a_point_has_its_mean_exactly_there(self):
        """The loss of the map that equals the target has no gradient, and that map names it."""
        torch.manual_seed(0)
        points = torch.rand(1, 6, 2, dtype=torch.float64) * 1.8 - 0.9
        heat = torch.zeros(1, 6, 8, 8, dtype=torch.float64)
        place = (points + 1) * 4 - 0.5
        low = place.floor().long()
        for index in range(6):
            (x, y), (fx, fy) = low[0, index].tolist(), (place - low)[0, index].tolist()
            for dx, dy, share in [(0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)),
                                  (0, 1, (1 - fx) * fy), (1, 1, fx * fy)]:  # fmt: skip
                if 0 <= x + dx < 8 and 0 <= y + dy < 8:
                    heat[0, index, y + dy, x + dx] = share
        logits = torch.log(heat.clamp(min=1e-12)).requires_grad_()
        torch.testing.assert_close(soft_argmax(logits), points, atol=1e-6, rtol=0)
        entropy = -(heat * torch.log(heat.clamp(min=1e-12))).sum((2, 3)).mean()
        value = heat_loss(logits, points)
        torch.testing.assert_close(value, entropy, atol=1e-4, rtol=0)

    def test_a_map_elsewhere_costs_more(self):
        points = torch.tensor([[[0.3, -0.2]]])
        near, far = torch.full((2, 1, 1, 16, 16), -6.0).unbind(0)
        near[0, 0, 6, 10] = 6.0
        far[0, 0, 12, 3] = 6.0
        assert heat_loss(near, points) < heat_loss(far, points) - 5

    @pytest.mark.parametrize("place", [-1.2, -1.0, 1.0, 1.2])
    def test_points_beyond_the_picture_are_finite(self, place):
        heat = torch.zeros(1, 2, 16, 16, requires_grad=True)
        value = heat_loss(heat, torch.full((1, 2, 2), place))
        value.backward()
        assert value.isfinite() and heat.grad.isfinite().all()

    def test_the_opening_error_sees_the_lips_only(self):
        a = torch.zeros(1, NUM_LANDMARKS, 2)
        moved = a + 0.3
        assert opening_error(moved, a) < 1e-6
        b = a.clone()
        b[:, ::3] += 0.1
        assert opening_error(b, a) == opening_error(a, b)


class Wobble(nn.Module):
    """A small network with dropout's opposite: all its chance comes from the run's generator."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def make_run(folder, seed=0, **options):
    config = LoopConfig(**{"steps": 6, "learning_rate": 0.05, "warm_up": 2, "report_every": 2,
                           **options})  # fmt: skip
    run = Run(folder, Wobble(seed), config)

    def loss(step):
        x = torch.randn(5, 4, generator=run.generator)
        run.model.count += 1
        value = (run.model.layer(x) - x[:, :3]).pow(2).mean()
        return value, {"size": float(x.abs().mean())}

    return run, loss


def stop_at(loss, last):
    def stopping(step):
        if step == last:
            raise KeyboardInterrupt
        return loss(step)

    return stopping


class TestRun:
    def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(self, tmp_path):
        whole, loss = make_run(tmp_path / "whole")
        whole.train(loss)
        first, loss = make_run(tmp_path / "parts", save_every_s=-1.0)
        with pytest.raises(KeyboardInterrupt):
            first.train(stop_at(loss, 3))
        second, loss = make_run(tmp_path / "parts", seed=5)
        assert second.step == 3
        second.train(loss)
        for a, b in ((whole.model, second.model), (whole.averaged, second.averaged)):
            for name, value in a.state_dict().items():
                assert torch.equal(value, b.state_dict()[name]), name
        assert torch.equal(whole.generator.get_state(), second.generator.get_state())

    def test_a_finished_run_does_nothing_more(self, tmp_path):
        run, loss = make_run(tmp_path)
        run.train(loss)
        again, _ = make_run(tmp_path, seed=9)
        averaged = again.train(stop_at(loss, 6))
        assert torch.equal(averaged.layer.weight, run.averaged.layer.weight)

    def test_the_checkpoint_is_written_whole(self, tmp_path):
        run, loss = make_run(tmp_path)
        run.train(loss)
        assert {path.name for path in tmp_path.iterdir()} == {"board", "last.pt", "log.jsonl"}

    def test_the_average_follows_and_counts_do_not_average(self, tmp_path):
        run, loss = make_run(tmp_path, ema=0.5)
        wanted, history = run.model.layer.weight.detach().clone(), []

        def seen(step):
            history.append(run.model.layer.weight.detach().clone())
            return loss(step)

        averaged = run.train(seen)
        for step, weight in enumerate([*history[1:], run.model.layer.weight.detach()]):
            decay = min(0.5, (1 + step) / (10 + step))
            wanted = decay * wanted + (1 - decay) * weight
        torch.testing.assert_close(averaged.layer.weight, wanted)
        assert averaged.count == 6 and not averaged.training

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_step_that_is_not_finite_is_skipped(self, tmp_path, bad):
        run, loss = make_run(tmp_path)
        kept = []

        def breaking(step):
            kept.append(run.model.layer.weight.detach().clone())
            value, seen = loss(step)
            return (value * bad if step == 2 else value), seen

        run.train(breaking)
        assert torch.equal(kept[3], kept[2]) and not torch.equal(kept[4], kept[3])
        assert run.step == 6 and run.averaged.layer.weight.isfinite().all()

    def test_the_rate_warms_up_and_falls_to_its_share(self, tmp_path):
        run, _ = make_run(tmp_path, steps=100, warm_up=10, learning_rate=1.0, final_rate=0.1)
        rates = []
        for run.step in range(101):
            rates.append(run.rate())
        assert rates[0] == pytest.approx(0.1, rel=0.01)
        assert np.argmax(rates) in (9, 10) and max(rates) > 0.97
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(0.55 * math.pi)))
        assert rates[100] == pytest.approx(0.1)

    def test_figures_and_judgements_are_logged(self, tmp_path):
        run, loss = make_run(tmp_path, evaluate_every=3)
        judged = []

        def evaluate(averaged, step):
            assert averaged is run.averaged
            judged.append(step)
            return {"score": step / 2}

        run.train(loss, evaluate)
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert judged == [3, 6]
        assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
        assert [line["score"] for line in lines if "score" in line] == [1.5, 3.0]
        assert {"loss", "norm", "size", "time_s"} < set(lines[0])

    def test_no_steps_are_named(self, tmp_path):
        with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
            make_run(tmp_path, steps=0)


def silent_parts(module):
    """Names of trained parameters that a loss did not reach, or not with finite gradients.

    A bias may rightly have none: a norm or a softmax behind it takes it out.
    """
    missed = []
    for name, parameter in module.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            missed.append(name)
        elif parameter.ndim > 1 and not parameter.grad.any():
            missed.append(name)
    return missed


class TestAutoencoderLoss:
    @pytest.fixture
    def batch(self, clips, stills):
        return PairSource(clips, stills, 2, still_share=0.5).draw(generator(1))

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        model = ReferenceAutoencoder(AUTOENCODER)
        stir(model)
        return model

    @pytest.mark.parametrize("maturity", [0.0, 1.0])
    def test_it_reaches_every_part(self, model, batch, maturity):
        torch.manual_seed(1)
        value, parts = autoencoder_loss(model, *batch, AutoencoderLossConfig(), maturity)
        value.backward()
        missed = silent_parts(model)
        assert missed == []
        assert all(math.isfinite(part) for part in parts.values())
        assert {"frame", "warp", "gradient", "points", "heat", "latent", "mask", "flow"} <= set(
            parts
        )

    def test_a_few_steps_lower_it(self, model, batch):
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
        values = []
        for _ in range(5):
            torch.manual_seed(1)
            value, _ = autoencoder_loss(model, *batch, AutoencoderLossConfig(), 1.0)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < values[0]


def test_the_decoder_stage_leaves_the_latents_as_they_are(clips, stills, tmp_path, monkeypatch):
    torch.manual_seed(0)
    initial_weights = ReferenceAutoencoder(AUTOENCODER)
    stir(initial_weights)
    monkeypatch.setattr(
        autoencoder, "ReferenceAutoencoder", lambda: ReferenceAutoencoder(AUTOENCODER)
    )
    config = LoopConfig(steps=2, warm_up=1, learning_rate=1e-3)
    trained = autoencoder.train_autoencoder(
        clips,
        stills,
        [],
        tmp_path,
        config,
        batch_size=2,
        initial_weights=initial_weights.state_dict(),
        freeze_latents=True,
    )
    after = trained.state_dict()
    changed = {n for n, v in initial_weights.state_dict().items() if not torch.equal(v, after[n])}
    assert {name.partition(".")[0] for name in changed} == {"decoder", "reference"}
    frames = torch.rand(1, 1, 3, 256, 256)
    assert torch.equal(trained.encode(frames), initial_weights.eval().encode(frames))


def flow_model():
    torch.manual_seed(0)
    model = AvatarModel(PRESET)
    stir(model)
    return model


@pytest.fixture(scope="module")
def tracks(clips):
    in_memory = [replace(clip, frames=np.array(clip.frames)) for clip in clips[:2]]
    return encode_clips(flow_model().autoencoder.eval(), in_memory)


class TestFlowLoss:
    @pytest.fixture
    def model(self, tracks):
        model = flow_model()
        fit_scales(model, tracks)
        return model

    def draw(self, tracks, seed=0, size=12, **shares):
        config = PRESET.denoiser
        source = WindowSource(tracks, config.window, config.memory, FlowLossConfig(**shares))
        return source.draw(size, generator(seed))

    def test_units_have_unit_variance(self, model, tracks):
        latents = torch.cat([t.latents.flatten(0, 1)[::5] for t in tracks])
        scaled = model.normalized_portrait(latents)
        assert scaled.mean((0, 2, 3)).abs().max() < 1e-3
        face, around = scaled.std((0, 2, 3)).split([16, 8])
        torch.testing.assert_close(face, torch.ones(16), atol=1e-3, rtol=0)
        assert not around.any()  # a portrait's are at rest
        motion = model.to_motion(tracks[0].latents, tracks[0].latents[:, 0])
        again = model.to_latents(motion, tracks[0].latents[:, 0])
        torch.testing.assert_close(again, tracks[0].latents, atol=1e-5, rtol=1e-4)
        assert not motion[:, 0].any()

    def test_windows_come_with_what_was_before_them(self, tracks):
        batch = self.draw(
            tracks, no_memory=0.0, frozen_memory=0.0, stale_memory=0.0, silent=0.0, size=20
        )
        assert batch.window.shape == (20, 4, 24, 4, 4) and batch.memory.shape == (20, 6, 24, 4, 4)
        for item in range(20):
            places = [
                (track, version, start)
                for track, t in enumerate(tracks)
                for version in range(2)
                for start in range(FRAMES - 3)
                if torch.equal(t.latents[version, start : start + 4], batch.window[item])
            ]
            assert places
            track, version, start = places[0]
            known = min(6, start)
            assert batch.filled[item].tolist() == [False] * (6 - known) + [True] * known
            before = tracks[track].latents[version, start - known : start]
            assert torch.equal(batch.memory[item, 6 - known :], before)
            heard = tracks[track].audio_clip.mel[:, 4 * start : 4 * (start + 4 + LOOKAHEAD_FRAMES)]
            assert torch.equal(batch.mel[item][:, 4 * AUDIO_CONTEXT_FRAMES :], heard)
            told = tracks[track].audio_clip.targets[start : start + 4]
            assert torch.equal(batch.targets[item, AUDIO_CONTEXT_FRAMES:], told)

    def test_an_item_hears_all_that_the_encoder_remembers(self):
        torch.manual_seed(0)
        encoder = CausalAudioEncoder().eval().requires_grad_(False)
        mel = torch.randn(1, 64, 4 * (3 + AUDIO_CONTEXT_FRAMES + 1))
        cut = encoder.encode_mel(mel[:, :, 4 * 3 :])[:, -1]
        torch.testing.assert_close(cut, encoder.encode_mel(mel)[:, -1])

    def test_a_stale_memory_is_of_another_moment(self, tracks):
        shares = {"no_memory": 0.0, "frozen_memory": 0.0, "silent": 0.0, "size": 20}
        fresh = self.draw(tracks, stale_memory=0.0, **shares)
        stale = self.draw(tracks, stale_memory=1.0, **shares)
        assert not torch.equal(stale.memory, fresh.memory)

    def test_drift_moves_all_memory_alike(self, model, tracks):
        batch = self.draw(tracks, no_memory=0.0, frozen_memory=1.0)
        trainer = FlowTrainer(model, FlowLossConfig(drift=0.8, heavy_noise=0.0))
        memory, filled = trainer.noised_memory(model, batch, generator(1))
        assert filled.all() and not memory[:, 0].any()  # the anchor is never corrupted
        shared = memory[:, 1:].mean(1).std()
        assert shared > 3 * (memory[:, 1:] - memory[:, 1:].mean(1, keepdim=True)).std()

    def test_shares_of_special_items(self, tracks):
        assert not self.draw(tracks, no_memory=1.0, frozen_memory=0.0).filled.any()
        frozen = self.draw(tracks, no_memory=0.0, frozen_memory=1.0)
        assert frozen.filled.all()
        assert torch.equal(frozen.memory, frozen.portrait[:, None].expand_as(frozen.memory))
        assert not self.draw(tracks, silent=1.0).targets.any()

    def test_it_reaches_every_part_and_the_audio_encoder_too(self, model, tracks):
        trainer = FlowTrainer(model, FlowLossConfig(no_audio=0.3))
        stir(trainer)
        torch.manual_seed(2)
        value, parts = trainer.loss(model, self.draw(tracks, no_memory=0.0), generator(4))
        value.backward()
        assert silent_parts(trainer) == []
        assert any(name.startswith("audio.") for name, _ in trainer.named_parameters())
        assert all(math.isfinite(part) for part in parts.values())

    def test_a_run_changes_the_audio_encoder_and_not_the_autoencoder(self, model, tracks, tmp_path):
        trainer = FlowTrainer(model, FlowLossConfig())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        run = Run(tmp_path, trainer, LoopConfig(steps=2, warm_up=1, learning_rate=1e-3))
        run.train(lambda step: trainer.loss(model, self.draw(tracks, step), run.generator))
        after = model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        parts = {name.partition(".")[0] for name in changed}
        assert parts == {"audio", "denoiser"}
        assert {n for n, _ in model.named_parameters() if n.startswith("audio.")} <= changed

    def test_a_few_steps_lower_it(self, model, tracks):
        torch.manual_seed(3)
        trainer = FlowTrainer(model, FlowLossConfig()).eval()
        batch = self.draw(tracks, 1, 8)
        optimizer = torch.optim.Adam(trainer.parameters(), lr=2e-3)
        values = []
        for _ in range(6):
            value, _ = trainer.loss(model, batch, generator(5))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < values[0]

    def test_a_bottleneck_shows_true_mouths_and_keeps_its_reading(self, tracks, tmp_path):
        torch.manual_seed(0)
        audio = replace(PRESET.audio, mouth_values=NUM_MOUTH_TARGETS)
        model = AvatarModel(replace(PRESET, audio=audio))
        stir(model)
        fit_scales(model, tracks)
        batch = self.draw(tracks, 1, 8)
        other = replace(batch, mel=torch.randn_like(batch.mel))

        def value(batch, **shares):
            trainer = FlowTrainer(model, FlowLossConfig(no_audio=0.0, **shares)).eval()
            return trainer.loss(model, batch, generator(5))[0].detach()

        assert torch.equal(value(batch, mouth_read=0.0), value(other, mouth_read=0.0))
        assert not torch.equal(value(batch, mouth_read=1.0), value(other, mouth_read=1.0))

        before = {name: value.clone() for name, value in model.audio.state_dict().items()}
        trainer = FlowTrainer(model, FlowLossConfig(no_audio=0.0))
        run = Run(tmp_path, trainer, LoopConfig(steps=2, warm_up=1, learning_rate=1e-3))
        run.train(lambda step: trainer.loss(model, batch, run.generator))
        after = model.audio.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"mouth.show.weight", "mouth.show.bias"}

    def test_whole_sounds_are_generated_window_by_window(self, model, tracks):
        sounds = torch.stack([track.audio_clip.mel for track in tracks])
        portraits = torch.stack([track.latents[0, 0] for track in tracks])
        made = generate(model.eval(), sounds, portraits, steps=1)
        assert made.shape == (2, FRAMES, 24, 4, 4) and made.isfinite().all()
        later = sounds.clone()
        later[:, :, 4 * (12 + 2) :] = 1.0
        again = generate(model, later, portraits, steps=1)
        torch.testing.assert_close(again[:, :12], made[:, :12])
        assert not torch.allclose(again[:, 12:], made[:, 12:])


def test_surroundings_are_learned_without_touching_the_face(clips, tracks, tmp_path):
    model = flow_model()
    fit_scales(model, tracks)
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    config = LoopConfig(steps=3, warm_up=1, learning_rate=1e-2, weight_decay=0.1, evaluate_every=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "EVALUATION_FRAMES", 8)
        made = train_flow(
            model,
            tracks,
            tracks,
            tmp_path,
            config,
            batch_size=4,
            initial_weights=before,
            freeze_faces=True,
        )
    after = made.denoiser.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"head.weight", "head.bias"}
    for name in changed:
        assert torch.equal(before[name][:16], after[name][:16])


def test_surroundings_have_no_chance_of_their_own():
    noise = torch.randn(2, 4, 24, 4, 4)
    kept = flow_model().without_background_noise(noise)
    assert torch.equal(kept[:, :, :16], noise[:, :, :16]) and not kept[:, :, 16:].any()


def frames_of(path):
    with av.open(str(path)) as container:
        kinds = {stream.type for stream in container.streams}
        return kinds, [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


class TestSamples:
    def test_a_sample_of_the_autoencoder_shows_true_and_rebuilt_frames(self, clips, tmp_path):
        model = ReferenceAutoencoder(AUTOENCODER)
        longest = max(clip.num_frames for clip in clips)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reconstruction, "SAMPLE_FRAMES", longest)
            reconstruction.save_samples(model, clips[:1], tmp_path / "sample")
        kinds, frames = frames_of(tmp_path / "sample.mp4")
        assert kinds == {"video"} and len(frames) == longest
        assert frames[0].shape == (512, 256, 3)
        true = clips[0].frames[0].astype(float)
        assert np.abs(frames[0][:256] - true).mean() < 12
        with Image.open(tmp_path / "sample.png") as sheet:
            assert sheet.size == (5 * 256, 256)

    def test_a_sample_of_the_generator_has_its_sound(self, clips, tmp_path):
        torch.manual_seed(0)
        model = AvatarModel(PRESET)
        stir(model)
        save_sample(model.eval(), clips[0], tmp_path / "sample.mp4")
        kinds, frames = frames_of(tmp_path / "sample.mp4")
        assert kinds == {"video", "audio"} and len(frames) == clips[0].num_frames // 4 * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_run_goes_on_where_it_stopped(tracks, tmp_path):
    model = flow_model()
    fit_scales(model, tracks)
    config = LoopConfig(steps=2, warm_up=1, evaluate_every=10, device="cuda")
    trainer = FlowTrainer(model.to("cuda"), FlowLossConfig())
    run = Run(tmp_path, trainer, config)
    shape = model.denoiser.config
    source = WindowSource(tracks, shape.window, shape.memory, FlowLossConfig())

    def loss(step):
        return trainer.loss(model, source.draw(4, run.generator).to(run.device), run.noise)

    run.train(loss)
    again = Run(tmp_path, FlowTrainer(model, FlowLossConfig()), replace(config, steps=3))
    assert again.step == 2
    assert next(again.model.parameters()).device.type == "cuda"
    again.train(loss)


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


@pytest.mark.parametrize("lookahead_ms, ahead", [(0, 0), (40, 1), (160, 4)])
def test_training_follows_the_look_ahead(lookahead_ms, ahead, root, cache):
    clip = load_clips(root, cache, "train")[0]
    heard = audio_clip(clip, ahead)
    assert heard.lookahead_frames == ahead
    reader = MouthReader(replace(PRESET.audio, lookahead_ms=lookahead_ms))
    assert reader(heard.mel[None]).shape[1] == clip.num_frames


def test_a_bottleneck_reads_the_mouth_itself(root, cache):
    clip = load_clips(root, cache, "train")[0]
    reader = MouthReader(replace(PRESET.audio, mouth_values=NUM_MOUTH_TARGETS)).eval()
    assert reader.head is None
    mel = audio_clip(clip).mel[None]
    ahead = reader.audio.lookahead_frames
    assert torch.equal(reader(mel), reader.audio.read_mouth(mel)[:, ahead:])


class TestCalibration:
    def reader(self, **options):
        torch.manual_seed(5)
        reader = MouthReader(replace(PRESET.audio, **options)).eval()
        stir(reader)
        return reader

    def test_readings_become_as_large_as_mouths(self, clips):
        reader = self.reader(mouth_values=NUM_MOUTH_TARGETS)
        real = [audio_clip(clip) for clip in clips if clip.kind == "real"]
        judge = replace(real[0], targets=2 * read_all(reader, real[0]))
        before = read_all(reader, judge)
        calibrate(reader, [judge])
        after = read_all(reader, judge)
        torch.testing.assert_close(after.diff(dim=0), 2 * before.diff(dim=0), rtol=1e-3, atol=1e-4)
        calibrate(reader, [replace(judge, targets=100 * judge.targets)])
        most = MAX_GAIN * after.diff(dim=0)
        torch.testing.assert_close(read_all(reader, judge).diff(dim=0), most, rtol=1e-3, atol=1e-3)

    def test_silence_is_a_mouth_at_rest(self, clips):
        reader = self.reader(mouth_values=NUM_MOUTH_TARGETS)
        calibrate(reader, [audio_clip(clips[0])])
        quiet = silence_mel().expand(-1, 4 * 40)[None]
        with torch.no_grad():
            assert reader.audio.read_mouth(quiet)[0, -1].abs().max() < 1e-5

    def test_a_reader_that_ships_no_values_is_left_alone(self, clips):
        reader = self.reader()
        before = {name: value.clone() for name, value in reader.state_dict().items()}
        calibrate(reader, [audio_clip(clips[0])])
        assert all(torch.equal(before[name], value) for name, value in reader.state_dict().items())


@torch.no_grad()
def read_all(reader, clip):
    return reader(clip.mel[None])[0]

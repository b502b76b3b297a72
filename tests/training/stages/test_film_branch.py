"""The conditions of films for latents without landmarks: what they add, and what each is worth."""

import json

import pytest
import torch
from support.toys import make_film_model
from support.training import generator, silent_parts

from letstalk_rt.models.avatar_model import with_part
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS
from letstalk_rt.models.geometry.lower_face import lower_face_mask
from letstalk_rt.models.geometry.mouth_crop import RIGID
from letstalk_rt.models.parts import LANDMARK_CONDITION
from letstalk_rt.training.data.film_items import FilmSource, FilmTrack
from letstalk_rt.training.data.sound_inputs import MelInput
from letstalk_rt.training.data.spoken_clips import AudioClip
from letstalk_rt.training.data.tracks import Track, moments
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.film_branch import (
    CONDITIONS,
    FilmTrainer,
    ablate_conditions,
    train_film_branch,
    validate,
)

pytest.importorskip("diffusers", reason="the extra `paper` is not installed")

FRAMES, SIDE = 40, 2


def film(name, seed):
    """A clip of white latents, whose masked frames show all but the lower row."""
    random = generator(seed)
    latents = torch.randn(1, FRAMES, 32, SIDE, SIDE, generator=random)
    points = 0.2 * torch.randn(NUM_LANDMARKS, 2, generator=random)
    points[RIGID[:4]] = torch.tensor([[-0.6, -0.6], [-0.4, -0.6], [0.4, -0.6], [0.6, -0.6]])
    points[RIGID[4:]] = torch.tensor([0.0, 0.1])
    moved = points + 0.05 * torch.randn(FRAMES, 1, 2, generator=random)
    masked = latents[0].clone()
    masked[:, :, 1] = 0
    features = MelInput().of_clip(0.1 * torch.randn(FRAMES * 640, generator=random).numpy())
    audio = AudioClip(name, features, torch.zeros(FRAMES, 11), 1.0, False, True)
    quiet = torch.zeros(FRAMES, dtype=torch.bool)
    return FilmTrack(Track(audio, latents, quiet, moments(latents)), masked, moved)


@pytest.fixture(scope="module")
def films():
    return [film(f"p{i}-1", i) for i in range(6)]


def fresh_model():
    """A model whose branch still adds nothing; its head passes on what the branch adds later."""
    model = make_film_model()
    torch.nn.init.orthogonal_(model.denoiser.head.weight)
    branch = LANDMARK_CONDITION.build(model.preset)
    return with_part(model, LANDMARK_CONDITION, branch)


def source_of(model, films):
    shape = model.denoiser.config
    return FilmSource(films, shape.window, shape.history, MelInput())


LOOP = LoopConfig(steps=100, learning_rate=1e-2, warm_up=10, ema=0.9, evaluate_every=10**6)


def test_items_have_reference_window_and_the_frames_before(films):
    model = fresh_model()
    shape = model.denoiser.config
    batch = source_of(model, films[:1]).draw(16, generator())
    clip = films[0]
    for row in range(16):
        (start,) = [
            i
            for i in range(FRAMES - shape.window + 1)
            if torch.equal(batch.window[row], clip.track.latents[0, i : i + shape.window])
        ]
        assert torch.equal(batch.masked[row], clip.masked[start : start + shape.window])
        assert torch.equal(batch.points[row], clip.points[start : start + shape.window])
        known = int(batch.filled[row].sum())
        assert known in (0, min(start, shape.history))
        before = clip.track.latents[0, start - known : start]
        assert torch.equal(batch.memory[row, shape.history - known :], before)
    assert lower_face_mask(batch.points, SIDE).float().mean() == pytest.approx(0.5, abs=0.2)


def test_a_new_branch_adds_nothing_and_all_of_it_learns(films):
    model = fresh_model()
    figures = validate(model, source_of(model, films), torch.device("cpu"))
    assert figures["mouth"] == figures["mouth_without"]
    assert figures["rest"] == figures["rest_without"]
    trainer = FilmTrainer(make_film_model().denoiser.landmarks.requires_grad_(True))
    model.denoiser.landmarks = trainer.branch
    loss, _ = trainer.loss(model, source_of(model, films).draw(4, generator()), generator())
    loss.backward()
    assert silent_parts(trainer.branch) == []


def test_the_rest_of_a_film_comes_out_as_it_was_and_nothing_else_of_the_model_changes(
    films, tmp_path
):
    model = fresh_model()
    before = {k: v.clone() for k, v in model.state_dict().items() if ".landmarks." not in k}
    branch = train_film_branch(model, films[:5], films[5:], tmp_path, LOOP, batch_size=8)
    trained = with_part(model, LANDMARK_CONDITION, branch)
    assert all(torch.equal(value, trained.state_dict()[k]) for k, value in before.items())
    figures = validate(trained, source_of(trained, films[5:]), torch.device("cpu"))
    assert figures["rest"] < 0.8 * figures["rest_without"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("waiting" in line for line in lines)


def test_the_ablation_leaves_each_condition_out_once(films, tmp_path):
    rows = ablate_conditions(fresh_model(), films[:5], films[5:], tmp_path, LOOP, batch_size=8)
    assert rows == json.loads((tmp_path / "table.json").read_text())
    names = ["all conditions", *(f"without {name}" for name in CONDITIONS)]
    assert [row["variant"] for row in rows] == names
    by_name = {row["variant"]: row["rest"] for row in rows}
    assert by_name["without masked frame"] > 1.1 * by_name["all conditions"]
    assert len({row["mouth_without"] for row in rows}) == 1  # told nothing, they are one model

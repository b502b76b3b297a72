"""Faces go back into their portraits without a seam, and as sharp as the photograph."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.faces import SkinFinder, draw

from letstalk_rt.avatars import list_avatars
from letstalk_rt.models.autoencoder.latents import FLOW_SIZE, DecodedLayers
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS
from letstalk_rt.models.loading import load_model, packaged_weights
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.types import Portrait


def portrait_with(box: tuple[float, float, float], shape: tuple[int, int] = (300, 400)) -> Portrait:
    canvas = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    return Portrait(canvas, np.zeros((256, 256, 3), np.uint8), box)


class TestCompositor:
    @pytest.mark.parametrize("side", [100.0, 256.0])
    def test_the_border_is_the_canvas_bit_for_bit(self, side: float) -> None:
        portrait = portrait_with((60.0, 10.0, side))
        shown = Compositor(portrait).compose(np.full((1, 256, 256, 3), 255, np.uint8))[0]
        left, top, last = 60, 10, int(side) - 1
        same = (shown == portrait.canvas).all(-1)
        assert same[top].all() and same[top + last].all()
        assert same[:, left].all() and same[:, left + last].all()
        outside = np.ones(same.shape, bool)
        outside[top : top + last + 1, left : left + last + 1] = False
        assert same[outside].all()

    def test_inside_the_generated_face_is_shown_untouched(self) -> None:
        portrait = portrait_with((60.0, 10.0, 256.0))
        face = np.random.default_rng(2).integers(0, 255, (2, 256, 256, 3), dtype=np.uint8)
        shown = Compositor(portrait).compose(face)
        assert np.array_equal(
            shown[:, 10 + 60 : 10 + 200, 60 + 60 : 60 + 200], face[:, 60:200, 60:200]
        )

    @pytest.mark.parametrize("side", [200, 256, 300])
    def test_the_crop_itself_changes_nothing(self, side: int) -> None:
        image = draw(512, 512, [(256, 270, int(side * 0.57))])
        portrait = prepare_portrait(image, SkinFinder(), size=400)
        shown = Compositor(portrait).compose(portrait.crop[None])[0]
        assert np.abs(shown.astype(int) - portrait.canvas).mean() < 1

    def test_float_and_uint8_frames_agree_and_overshoot_is_clipped(self) -> None:
        compositor = Compositor(portrait_with((50.0, 20.0, 220.0)))
        face = np.random.default_rng(3).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
        tensor = torch.from_numpy(face).permute(0, 3, 1, 2) / 127.5 - 1
        assert np.array_equal(compositor.compose(tensor), compositor.compose(face))
        limits = compositor.compose(tensor.sign()), compositor.compose(tensor.sign() * 5)
        assert np.array_equal(*limits)

    @pytest.mark.parametrize(
        "box", [(-80.0, -60.0, 256.0), (250.0, 150.0, 256.0), (0.0, -9.0, 400.0)]
    )
    def test_a_box_beyond_the_canvas_is_cut_off(self, box: tuple[float, float, float]) -> None:
        shown = Compositor(portrait_with(box)).compose(np.full((3, 256, 256, 3), 90, np.uint8))
        assert shown.shape == (3, 300, 400, 3)
        row, col = (int(np.clip(start + box[2] / 2, 0, 299)) for start in (box[1], box[0]))
        assert (shown[:, row, col] == 90).all()

    def test_results_are_new_memory_and_the_portrait_stays(self) -> None:
        portrait = portrait_with((60.0, 10.0, 256.0))
        before = portrait.canvas.copy()
        compositor = Compositor(portrait)
        first = compositor.compose(np.zeros((1, 256, 256, 3), np.uint8))
        kept = first.copy()
        compositor.compose(np.full((1, 256, 256, 3), 255, np.uint8))
        assert np.array_equal(first, kept) and np.array_equal(portrait.canvas, before)


def at_rest(count: int = 1) -> DecodedLayers:
    """Give layers that leave the portrait as it is."""
    return DecodedLayers(
        warped=torch.zeros(count, 3, 256, 256),
        mask=torch.ones(count, 1, 256, 256),
        change=torch.zeros(count, 3, 256, 256),
        flow=torch.zeros(count, 2, FLOW_SIZE, FLOW_SIZE),
        points=torch.zeros(count, NUM_LANDMARKS, 2),
    )


def anything(count: int) -> DecodedLayers:
    generator = torch.Generator().manual_seed(0)
    frames = at_rest(count)
    frames.flow = 0.1 * torch.randn(frames.flow.shape, generator=generator)
    frames.change = torch.randn(frames.change.shape, generator=generator)
    return frames


class TestLayers:
    @pytest.mark.parametrize("box", [(30.0, 20.0, 333.0), (-50.0, -70.0, 500.0)])
    def test_at_rest_the_canvas_is_shown_bit_for_bit(self, box: tuple[float, float, float]) -> None:
        portrait = portrait_with(box, (400, 420))
        shown = Compositor(portrait, layered=True).compose_layers(at_rest(2)).numpy()
        assert shown.shape == (2, 400, 420, 3)
        assert (shown == portrait.canvas).all()

    def test_outside_the_box_and_at_its_border_is_the_canvas_bit_for_bit(self) -> None:
        portrait = portrait_with((60.0, 10.0, 280.0))
        shown = Compositor(portrait, layered=True).compose_layers(anything(2)).numpy()
        same = (shown == portrait.canvas).all(-1)
        inside = np.zeros(same.shape[1:], bool)
        inside[11:289, 61:339] = True
        assert same[:, ~inside].all() and not same[:, inside].all()

    def test_the_canvas_moves_with_all_its_detail(self) -> None:
        portrait = portrait_with((20.0, 30.0, 340.0), (400, 400))
        frames = at_rest()
        frames.flow[:, 0], frames.flow[:, 1] = 3 * 2 / 340, -5 * 2 / 340
        shown = Compositor(portrait, layered=True).compose_layers(frames).numpy()[0]
        moved = portrait.canvas[100 - 5 : 300 - 5, 100 + 3 : 300 + 3]
        assert np.abs(shown[100:300, 100:300].astype(int) - moved).max() <= 1

    def test_movement_fades_towards_the_border(self) -> None:
        portrait = portrait_with((20.0, 30.0, 340.0), (400, 400))
        shade = np.linspace(0, 250, 400).astype(np.uint8)  # how far it moved is how much it changed
        portrait.canvas[:] = shade[None, :, None]
        frames = at_rest()
        frames.flow[:, 0] = 16 * 2 / 340
        shown = Compositor(portrait, layered=True).compose_layers(frames).numpy()[0].astype(int)
        change = shown[200, 20:190, 0] - portrait.canvas[200, 20:190, 0]
        assert change[0] == 0 and change[-1] == pytest.approx(10, abs=1)
        assert (np.diff(change) >= -1).all() and np.abs(np.diff(change)).max() <= 2

    def test_what_is_painted_has_its_place_and_its_colour(self) -> None:
        portrait = Portrait(
            np.full((512, 512, 3), 100, np.uint8),
            np.full((256, 256, 3), 100, np.uint8),
            (0.0, 0.0, 512.0),
        )
        frames = at_rest()
        frames.mask *= 0.5
        colour = torch.tensor([0.2, -0.4, 0.8])
        frames.change[0, :, 128:, 100:150] = colour[:, None, None]
        shown = Compositor(portrait, layered=True).compose_layers(frames).numpy()[0].astype(int)
        wanted = 100 + 0.5 * colour.numpy() * 127.5
        assert np.abs(shown[262:440, 206:294] - wanted).max() <= 2
        assert (shown[:250] == 100).all() and (shown[:, 310:] == 100).all()

    def test_white_and_black_are_not_passed(self) -> None:
        portrait = portrait_with((20.0, 30.0, 340.0), (400, 400))
        frames = at_rest(2)
        frames.change[0], frames.change[1] = 1.9, -1.9
        shown = Compositor(portrait, layered=True).compose_layers(frames).numpy()
        light, dark = shown[:, 150:250, 150:250]
        assert (light >= portrait.canvas[150:250, 150:250]).all() and light.min() > 230
        assert (dark <= portrait.canvas[150:250, 150:250]).all() and dark.max() < 20

    def test_frames_do_not_mix(self) -> None:
        compositor = Compositor(portrait_with((0.0, 0.0, 700.0), (700, 700)), layered=True)
        frames = anything(5)
        together = compositor.compose_layers(frames).numpy()
        for number in range(5):
            alone = compositor.compose_layers(frames[number : number + 1]).numpy()[0]
            assert np.abs(together[number].astype(int) - alone).max() <= 1

    @pytest.mark.parametrize("side", [300.0, 700.0])
    def test_without_opencv_the_same_is_shown(self, side: float) -> None:
        photograph = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
        photograph = F.interpolate(photograph * 60 + 128, (700, 700), mode="bicubic").clamp(0, 255)
        portrait = portrait_with((0.0, 0.0, side), (700, 700))
        portrait.canvas[:] = photograph[0].permute(1, 2, 0).byte().numpy()
        frames = at_rest(2)
        generator = torch.Generator().manual_seed(0)
        flow = torch.randn(2, 2, 6, 6, generator=generator)
        frames.flow = F.interpolate(0.05 * flow, (FLOW_SIZE, FLOW_SIZE), mode="bicubic")
        frames.change = F.interpolate(
            torch.randn(2, 3, 8, 8, generator=generator), (256, 256), mode="bicubic"
        )
        here, there = (
            Compositor(portrait, layered=True, opencv=opencv)
            .compose_layers(frames)
            .numpy()
            .astype(int)
            for opencv in (True, False)
        )
        assert np.abs(here - there).max() <= 3 and np.abs(here - there).mean() < 0.5

    def test_a_small_face_is_shown_as_the_model_painted_it(self) -> None:
        portrait = portrait_with((50.0, 20.0, 220.0))
        frames = anything(2)
        layered = Compositor(portrait, layered=True).compose_layers(frames).numpy()
        assert np.array_equal(layered, Compositor(portrait).compose(frames.frames))


@pytest.mark.skipif(not packaged_weights("tiny").exists(), reason="needs the trained weights")
@pytest.mark.parametrize("size", [512, 1024])
def test_a_face_at_rest_is_almost_the_photograph(size: int) -> None:
    model = load_model("tiny")
    shares = []
    for path in list_avatars().values():
        portrait = prepare_portrait(path, model.face_finder(), size=size)
        crop = torch.from_numpy(portrait.crop.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            features = model.autoencoder.encode_portrait(crop)
            frames = model.autoencoder.decode_layers(features.latent[:, None], features)[0]
        layers = Compositor(portrait, layered=True).compose_layers(frames).numpy()[0]
        picture = Compositor(portrait).compose(frames.frames)[0]
        error = ((layers.astype(float) - portrait.canvas) ** 2).mean()
        assert 10 * np.log10(255**2 / error) > 36
        shares.append(error / ((picture.astype(float) - portrait.canvas) ** 2).mean())
    assert np.mean(shares) < 0.5

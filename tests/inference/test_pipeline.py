"""The pipeline of the small model: streaming, partial windows, batches and errors."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from support.small_model import make_model, make_portrait, make_speech, stir
from torch import Tensor

from letstalk_rt.errors import AudioFormatError, ConfigError, PortraitError
from letstalk_rt.inference.audio_stage import SETTLE_SAMPLES, AudioState
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.quality import Quality
from letstalk_rt.inference.sample_stage import LatentState
from letstalk_rt.inference.session_state import SessionState
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.autoencoder.part_decoding import decode_mouths
from letstalk_rt.models.autoencoder.reference import DecodedLayers
from letstalk_rt.models.avatar_model import with_part
from letstalk_rt.models.batch_state import tensors
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.parts import MOUTH_PAINTER
from letstalk_rt.models.sampler import NoiseState, sample, timesteps
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.types import SAMPLES_PER_FRAME, MotionOptions, Portrait


def addresses(state: object) -> list[tuple[int, torch.Size]]:
    return [(tensor.data_ptr(), tensor.shape) for tensor in tensors(state)]


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make_model())


@pytest.fixture(scope="module")
def painting():
    """A pipeline with a mouth painter."""
    torch.manual_seed(0)
    painter = MouthPainter(MouthPainterConfig(widths=(8, 8, 8), bank=2))
    stir(painter)
    return AvatarPipeline(with_part(make_model(), MOUTH_PAINTER, painter))


def hops(count: int, seed: int = 0) -> np.ndarray:
    return make_speech(count * 0.16, seed).reshape(count, 1, 2560)


def play(pipeline: AvatarPipeline, state: SessionState, audio: np.ndarray) -> np.ndarray:
    """Step through hops `(S, 1, 2560)`; return frames `(4 S, H, W, 3)`."""
    return np.concatenate([pipeline.step(hop, [state])[0] for hop in audio])


def session_parts(state: SessionState) -> list[object]:
    return [
        state[AudioState].encoder,
        state[LatentState].memory,
        state[PictureState].features,
        state[LatentState].portrait,
    ]


class WatchedCompositor:
    """Wraps a compositor and calls `before` with the number of each call, from 1."""

    def __init__(self, inner: Compositor, before: Callable[[int], None]) -> None:
        self._inner, self._before = inner, before
        self.calls = self.done = 0

    def compose_layers(self, frames: DecodedLayers, **options: bool) -> Tensor:
        self.calls += 1
        self._before(self.calls)
        composed = self._inner.compose_layers(frames, **options)
        self.done += 1
        return composed

    def to_canvas(self, points: Tensor) -> Tensor:
        return self._inner.to_canvas(points)


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


class TestPipeline:
    def test_pictures_have_the_canvas_size(self, pipeline):
        (pictures,) = pipeline.step(hops(1)[0], [pipeline.init_state(make_portrait())])
        assert pictures.shape == (4, 96, 112, 3) and pictures.dtype == np.uint8

    def test_a_window_in_parts_equals_the_whole(self, pipeline):
        portrait, sound = make_portrait(), hops(3)
        states = [pipeline.init_state(portrait, StateOptions(3)) for _ in range(2)]
        for hop in sound:
            parts: list[np.ndarray] = []
            (whole,) = pipeline.step(hop, states[:1])
            (window,) = pipeline.step(hop, states[1:], lambda part, parts=parts: parts.extend(part))
            assert [len(part) for part in parts] == [*pipeline.partial_sizes] == [1, 1, 1, 1]
            assert np.array_equal(np.concatenate(parts), window)
            assert largest_difference(whole, window) <= 1, "but for rounding"

    def test_a_part_that_fails_ends_the_step_and_not_the_session(self, pipeline):
        state, sound = pipeline.init_state(make_portrait(size=64)), hops(2)

        def fail_once(call: int) -> None:
            if call == 2:
                raise RuntimeError("no memory")

        watched = state[PictureState].compositor = WatchedCompositor(
            state[PictureState].compositor, fail_once
        )
        with pytest.raises(RuntimeError, match="no memory"):
            pipeline.step(sound[0], [state], lambda part: None)
        assert watched.calls == 4  # nothing is painted any more
        assert len(pipeline.step(sound[1], [state], lambda part: None)[0]) == 4

    def test_when_nobody_takes_a_part_painting_ends_with_the_step(self, pipeline):
        state, sound = pipeline.init_state(make_portrait(size=64)), hops(1)
        refused = threading.Event()

        def wait_for_the_refusal(call: int) -> None:
            assert call == 1 or refused.wait(20)

        def refuse(part: np.ndarray) -> None:
            refused.set()
            raise ValueError("closed")

        watched = state[PictureState].compositor = WatchedCompositor(
            state[PictureState].compositor, wait_for_the_refusal
        )
        with pytest.raises(ValueError, match="closed"):
            pipeline.step(sound[0], [state], refuse)
        assert watched.done == 4

    def test_a_mouth_painter_changes_open_mouths_only(self, pipeline, painting):
        portrait, audio = make_portrait(), hops(2)
        plain = play(pipeline, pipeline.init_state(portrait), audio)
        state = painting.init_state(portrait)
        painted = play(painting, state, audio)
        changed = (painted != plain).any(-1)
        assert 0 < changed.mean() < 0.2
        state.reset()
        assert np.array_equal(play(painting, state, audio), painted)
        other = make_portrait(seed=5)
        state.reset()
        painting.change_portrait(state, other)
        assert np.array_equal(
            play(painting, state, audio), play(painting, painting.init_state(other), audio)
        )

    def test_pieces_equal_whole(self, pipeline):
        """Hop by hop equals the equations on the whole sound: frame `i` hears tokens `i - 2`."""
        model, portrait, sound = pipeline.model, make_portrait(), hops(3)
        options = StateOptions(3, motion=MotionOptions(blinks_per_min=0))
        state = pipeline.init_state(portrait, options)
        seen = play(pipeline, pipeline.init_state(portrait, options), sound)
        whole = torch.from_numpy(sound.reshape(1, -1))
        silence = torch.zeros(1, SETTLE_SAMPLES)
        tokens = model.audio(torch.cat([silence, whole], 1))[
            :, SETTLE_SAMPLES // SAMPLES_PER_FRAME :
        ]
        bank = MemoryBank.anchored(torch.zeros(1, 24, 4, 4), model.denoiser.config.memory)
        chance, motions = NoiseState(3, torch.zeros(1, 24, 4, 4)), []
        for window in tokens.split(4, 1):

            def velocity(x, t, window=window):
                at = torch.full((1, 4), t)
                return model.denoiser(
                    x, at, window, state[LatentState].portrait, bank.latents, bank.filled
                )

            noise = model.without_background_noise(chance.draw(4, 0.5, 1.0))
            motions.append(sample(velocity, noise, timesteps(2)))
            bank.write(motions[-1])
        latents = model.to_latents(torch.cat(motions, 1), state[PictureState].features.latent)
        autoencoder, count = model.autoencoder, latents.shape[1]
        inputs = autoencoder.prepare_decoder(latents[0], state[PictureState].features.repeat(count))
        faces = torch.cat(
            [
                decode_mouths(
                    autoencoder, inputs[i : i + 1], state[PictureState].features
                ).frames.clamp(-1, 1)
                for i in range(count)
            ]
        )
        assert largest_difference(seen, state[PictureState].compositor.compose(faces)) <= 1

    def test_speech_moves_the_face(self, pipeline):
        portrait, sound = make_portrait(), hops(2)
        spoken = play(pipeline, pipeline.init_state(portrait), sound)
        silent = play(pipeline, pipeline.init_state(portrait), np.zeros_like(sound))
        assert largest_difference(spoken, silent) > 10

    def test_the_future_does_not_change_the_past(self, pipeline):
        portrait, sound = make_portrait(), hops(4)
        later = sound.copy()
        later[2:] = hops(2, seed=9)
        before = play(pipeline, pipeline.init_state(portrait), sound)
        after = play(pipeline, pipeline.init_state(portrait), later)
        assert np.array_equal(before[:8], after[:8])
        assert not np.array_equal(before[8:], after[8:])

    def test_what_was_shown_is_not_written_again(self, pipeline):
        state, sound = pipeline.init_state(make_portrait()), hops(2)
        first = pipeline.step(sound[0], [state])
        kept = first.copy()
        pipeline.step(sound[1], [state])
        assert np.array_equal(first, kept)

    def test_reset_equals_new(self, pipeline):
        portrait, sound = make_portrait(), hops(3)
        state = pipeline.init_state(portrait, StateOptions(5))
        play(pipeline, state, hops(4, seed=8))
        state.reset()
        new = play(pipeline, pipeline.init_state(portrait, StateOptions(5)), sound)
        assert np.array_equal(play(pipeline, state, sound), new)

    def test_seed_and_sound_decide_the_video(self, pipeline):
        portrait, sound = make_portrait(), hops(2)
        one, same, other = (
            play(pipeline, pipeline.init_state(portrait, StateOptions(s)), sound) for s in (1, 1, 2)
        )
        assert np.array_equal(one, same) and not np.array_equal(one, other)

    def test_sessions_taking_turns_do_not_mix(self, pipeline):
        portraits, sounds = [make_portrait(1), make_portrait(2)], [hops(3, 1), hops(3, 2)]
        states = [pipeline.init_state(p, StateOptions(i)) for i, p in enumerate(portraits)]
        turns = [[pipeline.step(s[h], [t])[0] for s, t in zip(sounds, states, strict=True)]
                 for h in range(3)]  # fmt: skip
        for index, (portrait, sound) in enumerate(zip(portraits, sounds, strict=True)):
            alone = play(pipeline, pipeline.init_state(portrait, StateOptions(index)), sound)
            assert np.array_equal(np.concatenate([turn[index] for turn in turns]), alone)

    def test_a_batch_of_sessions_is_as_good_as_alone(self, pipeline):
        portraits, sounds = [make_portrait(i) for i in range(3)], [hops(3, i) for i in range(3)]
        states = [pipeline.init_state(p, StateOptions(i)) for i, p in enumerate(portraits)]
        play(pipeline, states[2], hops(1, 7))  # this one has begun earlier
        together = [pipeline.step(np.concatenate(pcm), states) for pcm in zip(*sounds, strict=True)]
        for index in range(3):
            state = pipeline.init_state(portraits[index], StateOptions(index))
            if index == 2:
                play(pipeline, state, hops(1, 7))
            alone = play(pipeline, state, sounds[index])
            shown = np.concatenate([pictures[index] for pictures in together])
            assert largest_difference(shown, alone) <= 1

    @pytest.mark.parametrize("kind", ["pipeline", "painting"])
    def test_sessions_of_different_sizes_in_one_step_are_as_good_as_alone(self, kind, request):
        pipeline = request.getfixturevalue(kind)
        sizes, sounds = (64, 96, 160), [hops(3, i) for i in range(3)]
        portraits = [make_portrait(i, size=size) for i, size in enumerate(sizes)]

        def begin(index: int) -> SessionState:
            return pipeline.init_state(portraits[index], StateOptions(index))

        states = [begin(index) for index in range(3)]
        shown: list[list[np.ndarray]] = [[], [], []]

        def take(parts: Sequence[np.ndarray]) -> None:
            for one, part in zip(shown, parts, strict=True):
                one.append(part.copy())

        for pcm in zip(*sounds, strict=True):
            windows = pipeline.step(np.concatenate(pcm), states, take)
            for one, window in zip(shown, windows, strict=True):
                assert np.array_equal(np.concatenate(one[-4:]), window)
        for index, frames in enumerate(shown):
            alone = play(pipeline, begin(index), sounds[index])
            assert alone.shape[1:3] == portraits[index].canvas.shape[:2]
            assert largest_difference(np.concatenate(frames), alone) <= 1, "but for rounding"

    def test_the_mouths_of_all_sessions_are_inpainted_at_once(self, painting):
        portraits = [make_portrait(i, size=size) for i, size in enumerate((64, 96, 160))]
        states = [painting.init_state(each) for each in portraits]
        counts: list[int] = []
        watched = painting.model.mouth_painter.register_forward_hook(
            lambda module, inputs, result: counts.append(len(result))
        )
        try:
            painting.step(hops(1)[0].repeat(3, 0), states)
            painting.set_quality(states[1], Quality(fps=12))
            painting.step(hops(1)[0].repeat(3, 0), states)
        finally:
            watched.remove()
        assert counts[:4] == [3, 3, 3, 3] and sorted(counts[4:]) == [2, 2, 3, 3]

    def test_a_part_that_fails_in_a_batch_ends_the_step_for_all(self, painting):
        states = [painting.init_state(make_portrait(i, size=64)) for i in range(2)]

        def fail_once(call: int) -> None:
            if call == 2:
                raise RuntimeError("no memory")

        watched = states[1][PictureState].compositor = WatchedCompositor(
            states[1][PictureState].compositor, fail_once
        )
        with pytest.raises(RuntimeError, match="no memory"):
            painting.step(hops(1)[0].repeat(2, 0), states)
        assert watched.calls == 4, "nothing is painted any more"
        assert [len(one) for one in painting.step(hops(1)[0].repeat(2, 0), states)] == [4, 4]

    @pytest.mark.parametrize("count", [1, 2])
    def test_state_keeps_its_addresses_and_size_for_ever(self, pipeline, count):
        states = [pipeline.init_state(make_portrait(i)) for i in range(count)]
        before = [addresses(session_parts(s)) for s in states]
        for pcm in hops(8):
            pipeline.step(pcm.repeat(count, 0), states)
        pipeline.interrupt(states[0])
        states[0].reset()
        assert [addresses(session_parts(s)) for s in states] == before

    def test_interrupt_forgets_the_speech_and_keeps_the_face(self, pipeline):
        state = pipeline.init_state(make_portrait())
        play(pipeline, state, hops(3))
        memory, filled = (kept := state[LatentState].memory).latents.clone(), kept.filled.clone()
        pipeline.interrupt(state)
        for heard, silent in zip(
            tensors(state[AudioState].encoder), tensors(state[AudioState].silence), strict=True
        ):
            assert torch.equal(heard, silent) and heard.data_ptr() != silent.data_ptr()
        assert torch.equal(state[LatentState].memory.latents, memory)
        assert torch.equal(state[LatentState].memory.filled, filled)
        assert filled.any() and memory.any()

    def test_a_session_begins_as_after_long_silence(self, pipeline):
        """A fresh state's zeros are no sound the model was trained on: it would twitch."""
        state, settled = (pipeline.init_state(make_portrait()) for _ in range(2))
        play(pipeline, settled, np.zeros((20, 1, pipeline.hop), np.float32))
        for new, old in zip(
            tensors(state[AudioState].encoder), tensors(settled[AudioState].encoder), strict=True
        ):
            torch.testing.assert_close(new, old)

    def test_interrupt_of_one_session_leaves_the_other(self, pipeline):
        portrait, sound = make_portrait(), hops(3)
        state, other = (pipeline.init_state(portrait) for _ in range(2))
        alone = play(pipeline, pipeline.init_state(portrait), sound)
        shown = []
        for hop in sound:
            shown.append(pipeline.step(hop, [state])[0])
            pipeline.step(hop, [other])
            pipeline.interrupt(other)
        assert np.array_equal(np.concatenate(shown), alone)

    @pytest.mark.parametrize(
        "pcm, wrong",
        [
            (np.zeros((1, 2559), np.float32), "2559"),
            (np.zeros((2, 2560), np.float32), r"\(1, 2560\)"),
            (np.zeros((1, 2560)), "float64"),
            (np.zeros((1, 2560), np.int16), "int16"),
            (np.full((1, 2560), np.nan, np.float32), "NaN"),
            (np.full((1, 2560), np.inf, np.float32), "infinity"),
        ],
    )
    def test_bad_sound_is_named_and_changes_nothing(self, pipeline, pcm, wrong):
        portrait, sound = make_portrait(), hops(2)
        state = pipeline.init_state(portrait)
        first = pipeline.step(sound[0], [state])[0]
        with pytest.raises(AudioFormatError, match=wrong):
            pipeline.step(pcm, [state])
        second = pipeline.step(sound[1], [state])[0]
        whole = play(pipeline, pipeline.init_state(portrait), sound)
        assert np.array_equal(np.concatenate([first, second]), whole)

    def test_a_crop_of_another_size_is_named(self, pipeline):
        canvas = np.zeros((96, 96, 3), np.uint8)
        with pytest.raises(PortraitError, match="prepare_portrait"):
            pipeline.init_state(Portrait(canvas, canvas, (0.0, 0.0, 96.0)))

    @pytest.mark.parametrize("steps", [0, 51])
    def test_steps_out_of_range_are_named(self, steps):
        with pytest.raises(ConfigError, match="steps must be an integer from 1 to 50"):
            AvatarPipeline(make_model(), steps=steps)

    def test_the_public_clockwork_is_as_declared(self, pipeline):
        declared = (pipeline.fps, pipeline.frames_per_window, pipeline.hop)
        assert declared == (25, 4, 2560) and pipeline.lookahead_frames == 2

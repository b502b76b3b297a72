"""A small avatar model with random weights, none of them zero: the real code, quick."""

import numpy as np
import torch
from torch import nn

from letstalk_rt.models.audio_encoder.causal import AudioEncoderConfig
from letstalk_rt.models.autoencoder.latents import LATENT_SHAPE
from letstalk_rt.models.autoencoder.networks import AutoencoderConfig
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.denoiser import DenoiserConfig
from letstalk_rt.models.geometry.landmarks import IRISES, LIPS, NUM_LANDMARKS, landmark_indices
from letstalk_rt.models.motion.denoiser import MotionDenoiserConfig
from letstalk_rt.models.motion.speech_encoder import SpeechEncoderConfig
from letstalk_rt.models.parts import MOTION as MOTION_PART
from letstalk_rt.models.parts import with_parts
from letstalk_rt.models.presets import Preset
from letstalk_rt.types import Portrait

AUDIO = AudioEncoderConfig(width=16, token_width=8, dilations=(1, 2, 4), dropout=0.1)
MOTION = MotionDenoiserConfig(
    SpeechEncoderConfig(width=16), memory=5, width=24, depth=2, heads=2, head_width=20, head_depth=1
)
AUTOENCODER = AutoencoderConfig(
    encoder=(8, 8, 16, 16, 16), reference=(8, 8, 8), decoder=(16, 16, 16), style=16
)
DENOISER = DenoiserConfig(
    channels=LATENT_SHAPE[0],
    side=4,
    width=32,
    depth=2,
    ffn_ratio=2.0,
    audio_tokens=4,
    audio_width=8,
    window=4,
    memory=6,
    dropout=0.1,
)
PRESET = Preset(
    "small",
    AUTOENCODER,
    AUDIO,
    DENOISER,
    steps=2,
    guidance=1.0,
    noise_correlation=0.5,
    temperature=1.0,
    parts=("detector", "head"),
    motion=MOTION,
)


def stir(module: nn.Module, size: float = 0.05) -> None:
    """Give parameters that begin as zero random values, so that every part has its say."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=size)


def make_model(seed: int = 0) -> AvatarModel:
    """Make the model, in eval mode."""
    torch.manual_seed(seed)
    model = AvatarModel(PRESET)
    stir(model)
    return model.eval().requires_grad_(False)


def make_motion_model(seed: int = 0) -> AvatarModel:
    """Make the model with a motion denoiser that moves lips, head, lids and cheeks."""
    torch.manual_seed(seed)
    model = AvatarModel(with_parts(PRESET, {*PRESET.parts, "motion"}))
    stir(model)
    motion = model.part(MOTION_PART)
    motion.lip_levels.copy_(0.05 * motion.lip_knots)
    motion.levels.mul_(0.05)
    motion.expression.face.normal_(std=0.1)
    motion.expression.lips.normal_(std=0.05)
    motion.expression.mouth.natural.normal_(std=0.1)
    return model.eval().requires_grad_(False)


def make_portrait(seed: int = 0, size: int = 96) -> Portrait:
    """Make a portrait of coloured blobs; the face's box reaches beyond a small canvas."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 8, 8)))
    smooth = nn.functional.interpolate(coarse, (256, 256), mode="bicubic").clamp(0, 255)
    crop = smooth[0].permute(1, 2, 0).numpy().astype(np.uint8)
    canvas = rng.integers(0, 256, (size, size + 16, 3), dtype=np.uint8)
    return Portrait(canvas, crop, (10.0, 8.0, float(size)))


def make_speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Make noise that swells and fades four times a second, `(n,)` float32."""
    n = round(seconds * 16_000)
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(n) / 16_000)
    noise = np.random.default_rng(seed).normal(size=n)
    return (0.2 * swell * noise).astype(np.float32)


def face_points() -> torch.Tensor:
    """Landmarks of a drawn face: eyes above, lips below, the rest around them."""
    points = torch.from_numpy(
        np.random.default_rng(0).uniform(-0.6, 0.6, (NUM_LANDMARKS, 2))
    ).float()
    angle = torch.linspace(0, 2 * torch.pi, len(LIPS) + 1)[:-1]
    points[LIPS] = torch.stack([0.2 * angle.cos(), 0.55 + 0.05 * angle.sin()], 1)
    for corner, other, side in ((33, 133, -1), (263, 362, 1)):
        points[landmark_indices((corner, other))] = torch.tensor(
            [[side * 0.35, -0.1], [side * 0.15, -0.1]]
        )
    for upper, lower, side in (
        ((246, 161, 160, 159, 158, 157, 173), (7, 163, 144, 145, 153, 154, 155), -1),
        ((466, 388, 387, 386, 385, 384, 398), (249, 390, 373, 374, 380, 381, 382), 1),
    ):
        x = side * torch.linspace(0.33, 0.17, 7)
        height = 0.05 * torch.sin(torch.linspace(0.3, np.pi - 0.3, 7))
        points[landmark_indices(upper)] = torch.stack([x, -0.1 - height], 1)
        points[landmark_indices(lower)] = torch.stack([x, -0.1 + height], 1)
    points[landmark_indices(IRISES[:5])] = torch.tensor([-0.25, -0.1])
    points[landmark_indices(IRISES[5:])] = torch.tensor([0.25, -0.1])
    return points


def open_mouth(points: torch.Tensor, gap: float) -> torch.Tensor:
    """Return landmarks whose inner lips are `gap` mouth widths apart."""
    points = points.clone()
    points[landmark_indices((61, 291))] = torch.tensor([[-0.2, 0.5], [0.2, 0.5]])
    for upper, lower, x in ((13, 14, 0.0), (81, 178, -0.05), (311, 402, 0.05)):
        points[landmark_indices((upper, lower))] = torch.tensor(
            [[x, 0.5 - 0.2 * gap], [x, 0.5 + 0.2 * gap]]
        )
    return points

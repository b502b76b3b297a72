"""Counts parameters and FLOPs per frame of every size, without making weights.

python benchmarks/bench_size.py --json | tail -1 > benchmarks/results/model-sizes.json
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from time_limit import add_limit, limit_s, time_limit
from torch.utils.flop_counter import FlopCounterMode

from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.denoiser import Denoiser
from letstalk_rt.models.presets import get_preset
from letstalk_rt.paper.denoiser import PaperModel, count_parameters
from letstalk_rt.paper.kl_ae import KLAutoencoder
from letstalk_rt.paper.presets import get_paper_preset

PUBLISHED = ("s", "b", "l", "xl", "v1-b-2", "v1-l-2")
STREAMING = ("tiny", "b", "l")
EXPECTED_S = 60.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, last")
    add_limit(parser)
    options = parser.parse_args()
    rows: list[dict[str, float | str | int]] = []
    result: dict[str, Any] = {"rows": rows}
    with time_limit(limit_s(options, EXPECTED_S), result):
        rows.extend(published_row(name) for name in PUBLISHED)
        rows.extend(streaming_row(name) for name in STREAMING)
        rows.extend(decoder_rows())
    print("\n".join(table(rows)))
    if options.json:
        print(json.dumps(result))


def table(rows: list[dict[str, float | str | int]]) -> list[str]:
    """Return the rows as lines of Markdown."""
    lines = ["| model | parameters | steps | GFLOP per frame and step | GFLOP per frame |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        millions, step = float(row["parameters"]) / 1e6, float(row["gflop_per_step"])
        frame = float(row["gflop_per_frame"])
        shown = f"{frame:,.0f}" if frame > 10 else f"{frame:.1f}"
        lines.append(
            f"| {row['model']} | {millions:,.1f} M | {row['steps']} | {step:,.1f} | {shown} |"
        )
    return lines


def published_row(name: str) -> dict[str, float | str | int]:
    """Return the row of a size of the published form: denoiser and projector."""
    preset = get_paper_preset(name)
    config, projector = preset.denoiser, preset.projector
    with torch.device("meta"):
        model = PaperModel(preset)
        latent, frames = config.latent_shape, config.frames
        features = torch.empty(1, frames, projector.layers, projector.feature_width)
        tokens = torch.empty(1, frames, config.audio_tokens, config.audio_width)
        memory = torch.empty(1, config.memory, *latent)
        clip, portrait = torch.empty(1, frames, *latent), torch.empty(1, *latent)
    step = flop(lambda: model.denoiser(clip, torch.empty(1), tokens, portrait, memory)) / frames
    once = flop(lambda: model.projector(features)) / frames
    return _row(f"`faithful-{name}`", count_parameters(model), preset.steps, step, once)


def streaming_row(name: str) -> dict[str, float | str | int]:
    """Return the row of the denoiser of a streaming preset, with a filled memory bank."""
    preset = get_preset(name)
    config = preset.denoiser
    with torch.device("meta"):
        denoiser = Denoiser(config)
        latent = (config.channels, config.side, config.side)
        state = denoiser.portrait_state(torch.empty(1, *latent))
        bank = torch.empty(1, 1 + config.memory, *latent)
        cache = denoiser.encode_memory(bank, torch.ones(1, 1 + config.memory, dtype=torch.bool))
        window, times = torch.empty(1, config.window, *latent), torch.empty(1, config.window)
        tokens = torch.empty(1, config.window, config.audio_tokens, config.audio_width)
    calls = 1 if config.guidance_input or preset.guidance == 1 else 2
    step = flop(lambda: denoiser.predict(window, times, tokens, state, cache)) * calls
    once = flop(lambda: denoiser.update_cache(window, cache))
    if not config.cached:
        filled = torch.ones(1, 1 + config.memory, dtype=torch.bool, device="meta")
        once = flop(lambda: denoiser.encode_memory(bank, filled))
    per_frame = step / config.window, once / config.window
    return _row(f"`{name}`, denoiser", count_parameters(denoiser), preset.steps, *per_frame)


def decoder_rows() -> list[dict[str, float | str | int]]:
    """Return the rows of the two autoencoders, of which a frame costs the decoder once."""
    with torch.device("meta"):
        models = DCAutoencoder.random(512).inner, KLAutoencoder.random(256).inner
        latents = torch.empty(1, 32, 16, 16), torch.empty(1, 4, 32, 32)
    names = "DC-AE f32c32, a frame of 512 px decoded", "SD-VAE f8c4, a frame of 256 px decoded"
    return [
        _row(
            name,
            sum(p.numel() for p in model.parameters()),
            1,
            flop(lambda m=model, z=latent: m.decode(z)),
            0,
        )
        for name, model, latent in zip(names, models, latents, strict=True)
    ]


def flop(call: Callable[[], object]) -> float:
    """Return the floating-point operations of a call on tensors without values."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _row(
    model: str, parameters: int, steps: int, step: float, once: float
) -> dict[str, float | str | int]:
    return {
        "model": model,
        "parameters": parameters,
        "steps": steps,
        "gflop_per_step": step / 1e9,
        "gflop_per_frame": (steps * step + once) / 1e9,
    }


if __name__ == "__main__":
    main()

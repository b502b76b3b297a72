"""Measures the cost and the effect of the three fusion schemes.

    python benchmarks/bench_fusion.py cost --preset b --device cuda --save
    python benchmarks/bench_fusion.py cost --preset tiny --save
    python benchmarks/bench_fusion.py effect --data DATA --cache CACHE --save
    python benchmarks/bench_fusion.py table

`cost` counts parameters and FLOPs of every pair of schemes without making weights, and times one
denoiser call. `effect` trains a small denoiser by diffusion for each row of the paper's ablation,
each for the same CPU time, on the latents of the clips, and evaluates it on other people. `table`
writes docs/fusion.md from
what was saved. The last line is JSON.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import processor_name
from time_limit import add_limit, limit_s, time_limit
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from letstalk_rt import __version__
from letstalk_rt.errors import InputError
from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES
from letstalk_rt.models.autoencoder.latents import FACE_SHAPE
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.models.loading import load_model
from letstalk_rt.models.memory import regularize_memory
from letstalk_rt.paper.denoiser import PaperDenoiser, count_parameters, first_memory
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.fusion import Fusion
from letstalk_rt.paper.presets import PaperConfig, get_paper_preset
from letstalk_rt.training.data.audio_features import correlation, mel_encoder
from letstalk_rt.training.data.dataset import load_clips
from letstalk_rt.training.data.tracks import Track, encode_clips
from letstalk_rt.training.stages.audio_encoder import split_by_source

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "fusion.md"
PAIRS = [*itertools.product(Fusion, Fusion)]
ABLATION = [
    (Fusion.DIRECT, Fusion.DIRECT),
    (Fusion.SIAMESE, Fusion.DIRECT),
    (Fusion.SYMBIOTIC, Fusion.DIRECT),
    (Fusion.SYMBIOTIC, Fusion.SIAMESE),
    (Fusion.SYMBIOTIC, Fusion.SYMBIOTIC),
]
"""Portrait and audio schemes of the paper's two ablations."""

TINY = PaperConfig(
    channels=FACE_SHAPE[0],
    side=4,
    width=96,
    depth=3,
    heads=3,
    ffn_ratio=2.5,
    audio_tokens=4,
    audio_width=96,
    frames=8,
    memory=2,
)
"""The denoiser of `effect`: for the latents and audio tokens of the embedded model."""

FACE = slice(FACE_SHAPE[0])
"""The channels of these latents that it makes."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def base_config(preset: str) -> PaperConfig:
    """Return the configuration of a preset; `tiny` is that of `effect`."""
    return TINY if preset == "tiny" else get_paper_preset(preset).denoiser


def inputs(config: PaperConfig, device: torch.device) -> Inputs:
    """Return random inputs of one clip."""
    latent = config.latent_shape
    return (
        torch.randn(1, config.frames, *latent, device=device),
        torch.rand(1, device=device),
        torch.randn(1, config.frames, config.audio_tokens, config.audio_width, device=device),
        torch.randn(1, *latent, device=device),
        torch.randn(1, config.memory, *latent, device=device),
    )


def count(config: PaperConfig) -> dict[str, float]:
    """Count parameters and FLOPs of a step on one clip, without making weights."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        denoiser = PaperDenoiser(config)
        denoiser(*inputs(config, torch.device("meta")))
    return {"parameters": count_parameters(denoiser), "flop": counter.get_total_flops()}


@torch.inference_mode()
def step_ms(config: PaperConfig, device: torch.device, repeats: int) -> float:
    """Time one denoiser call on one clip, in milliseconds: the median after two for warm-up."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        denoiser = PaperDenoiser(config).eval()
    given, taken_ms = inputs(config, device), []
    for _ in range(repeats + 2):
        _synchronize(device)
        started_s = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            denoiser(*given)
        _synchronize(device)
        taken_ms.append((time.perf_counter() - started_s) * 1000)
    return float(np.median(taken_ms[2:]))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_cost(options: argparse.Namespace) -> dict[str, Any]:
    """Return the result with the rows of the cost table."""
    device, rows = torch.device(options.device), list[dict[str, Any]]()
    result = {"what": "cost", "preset": options.preset, **card(device), "rows": rows}
    with time_limit(limit_s(options, 600.0), result):
        for portrait, audio in PAIRS:
            fused = {"portrait_fusion": portrait, "audio_fusion": audio}
            shape = replace(base_config(options.preset), **fused)
            row = {"portrait": portrait, "audio": audio, **count(shape)}
            if options.repeats:
                row["step_ms"] = round(step_ms(shape, device, options.repeats), 3)
            rows.append(row)
            if not options.json:
                print(json.dumps(row))
    return result


@dataclass(frozen=True)
class LatentClip:
    """A clip in the form that `effect` trains on.

    Attributes:
        latents: `(T, C, h, w)`, unit variance.
        tokens: audio tokens `(T, K, A)`.
        weight: How reliable its lips are.
    """

    latents: Tensor
    tokens: Tensor
    weight: float


@torch.no_grad()
def prepare(model: AvatarModel, tracks: Sequence[Track], frames: int) -> list[LatentClip]:
    """Return scaled latents and audio tokens of all clips that are long enough."""
    clips = []
    for track in tracks:
        mel = track.audio_clip.features[None]
        tokens = mel_encoder(model).encode_mel(mel)[0, LOOKAHEAD_FRAMES:]
        face = track.latents[0, :, FACE].float()  # without the background flow
        latents = (face - model.latent_mean[FACE]) / model.latent_scale[FACE]
        if len(latents) >= frames:
            clips.append(LatentClip(latents, tokens[: len(latents)], track.audio_clip.weight))
    if not clips:
        raise InputError(f"no clip has {frames} frames; add longer clips")
    return clips


def draw(
    clips: Sequence[LatentClip], config: PaperConfig, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw clips, audio tokens, portraits and memories of a batch."""
    chance = torch.tensor([len(c.latents) * max(c.weight, 0.05) for c in clips])
    items = []
    for index in torch.multinomial(chance, size, True, generator=generator).tolist():
        clip = clips[index]
        last = len(clip.latents) - config.frames
        start, other = (int(torch.randint(last + 1, (1,), generator=generator)) for _ in range(2))
        portrait = clip.latents[other]
        # Without enough past, the memory is the portrait, as at the beginning of a video.
        past = clip.latents[max(start - config.memory, 0) : start]
        begins = len(past) < config.memory
        memory = portrait.expand(config.memory, -1, -1, -1) if begins else past
        part = slice(start, start + config.frames)
        items.append((clip.latents[part], clip.tokens[part], portrait, memory))
    latents, tokens, portraits, memories = (torch.stack(c) for c in zip(*items, strict=True))
    return latents, tokens, portraits, memories


def train(
    config: PaperConfig, clips: Sequence[LatentClip], seconds: float, batch: int
) -> tuple[PaperDenoiser, int]:
    """Train for some seconds of CPU time; return the denoiser and its number of steps.

    CPU time makes the work equal on a busy machine.
    """
    torch.manual_seed(0)
    generator, chain = torch.Generator().manual_seed(0), Diffusion()
    denoiser, steps = PaperDenoiser(config), 0
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=2e-3, weight_decay=0.0)
    started_s = time.process_time()
    while (share := (time.process_time() - started_s) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (steps + 1) / 30) * (1 - share)
        loss = diffusion_loss(denoiser, chain, draw(clips, config, batch, generator), generator)
        optimizer.zero_grad(set_to_none=True)
        (loss["noise"] + loss["variance"]).mean().backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return denoiser.eval(), steps


def diffusion_loss(
    denoiser: PaperDenoiser,
    chain: Diffusion,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the published loss of each item."""
    latents, tokens, portrait, memory = batch
    index = torch.randint(chain.num_steps, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    memory = regularize_memory(memory, generator, diffusion=True)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return denoiser(x, t, tokens, portrait, memory)

    return chain.loss(denoise, latents, index, noise)


@torch.no_grad()
def judge(
    model: AvatarModel,
    denoiser: PaperDenoiser,
    clips: Sequence[LatentClip],
    length: int,
    steps: int,
) -> dict[str, float]:
    """Evaluate a denoiser on people who are not in its training data."""
    config, generator = denoiser.config, torch.Generator().manual_seed(1)
    chain = Diffusion()
    losses = [
        diffusion_loss(denoiser, chain, draw(clips, config, 16, generator), generator)["noise"]
        for _ in range(8)
    ]
    long = [clip for clip in clips if len(clip.latents) >= length]
    true = torch.stack([clip.latents[:length] for clip in long])
    tokens = torch.stack([clip.tokens[:length] for clip in long])
    generated = generate(denoiser, tokens, true[:, 0], steps, generator)
    shuffled = generate(denoiser, tokens.roll(len(long) // 2, 0), true[:, 0], steps, generator)
    opened, wrong, wanted = (_openings(model, latents) for latents in (generated, shuffled, true))
    return {
        "noise_error": float(torch.cat(losses).mean()),
        "lips_r": _mean_correlation(opened, wanted),
        "lips_r_shuffled": _mean_correlation(wrong, wanted),
        "portrait_error": float((generated.mean(1) - true.mean(1)).square().mean()),
        "motion_ratio": float(generated.std(1).mean() / true.std(1).mean()),
        "judged_clips": len(long),
    }


def generate(
    denoiser: PaperDenoiser,
    tokens: Tensor,
    portrait: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Sample `(B, T, C, h, w)` clip by clip with DDPM of some steps."""
    config, chain, generated = denoiser.config, Diffusion(steps), []
    memory = first_memory(portrait, config.memory)
    for part in tokens.split(config.frames, 1):

        def predict(x: Tensor, t: Tensor, part: Tensor = part, memory: Tensor = memory) -> Tensor:
            return denoiser(x, t, part, portrait, memory)

        noise = torch.randn(len(part), config.frames, *config.latent_shape, generator=generator)
        generated.append(chain.ddpm(predict, noise, generator))
        memory = generated[-1][:, -config.memory :]
    return torch.cat(generated, 1)


def _openings(model: AvatarModel, latents: Tensor) -> np.ndarray:
    landmarks = model.autoencoder.landmarks
    assert landmarks is not None, "the mouth opening needs a model with landmarks"
    points = landmarks.decode_landmarks(
        latents * model.latent_scale[FACE] + model.latent_mean[FACE]
    )
    return mouth_opening(points.numpy())


def _mean_correlation(generated: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([correlation(a, b) for a, b in zip(generated, true, strict=True)]))


def measure_effect(options: argparse.Namespace) -> dict[str, Any]:
    """Return the result with the rows of the table of effects."""
    model = load_model("tiny", options.weights)
    clips = [c for c in load_clips(options.data, options.cache, "train") if c.has_audio]
    kept, validation = split_by_source(clips)
    length = options.frames - options.frames % TINY.frames
    learnt = prepare(model, encode_clips(model.autoencoder, kept), TINY.frames)
    others = prepare(model, encode_clips(model.autoencoder, validation), length)
    rows = list[dict[str, Any]]()
    facts = {"seconds": options.seconds, "batch": options.batch, "frames": length}
    sampled = {"sampler_steps": options.sampler_steps, "parameters": count(TINY)["parameters"]}
    result = {"what": "effect", **facts, **sampled, **card(torch.device("cpu")), "rows": rows}
    with time_limit(limit_s(options, 2 * len(ABLATION) * options.seconds), result):
        for portrait, audio in ABLATION:
            shape = replace(TINY, portrait_fusion=portrait, audio_fusion=audio)
            denoiser, steps = train(shape, learnt, options.seconds, options.batch)
            figures = judge(model, denoiser, others, length, options.sampler_steps)
            row = {"portrait": portrait, "audio": audio, "steps": steps, **_rounded(figures)}
            rows.append(row)
            if not options.json:
                print(json.dumps(row))
    return result


def card(device: torch.device) -> dict[str, Any]:
    """Return the facts about the machine."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": __version__,
    }


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def write_tables(page: Path, results: Path) -> None:
    """Insert the tables of the saved results between the markers of the page."""
    text = page.read_text(encoding="utf-8")
    for name, lines in (("cost", cost_lines(results)), ("effect", effect_lines(results))):
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        _, mark, tail = rest.partition(f"<!-- end of {name} -->")
        if not mark:
            raise InputError(f"{page.name} has no markers for the table of {name}")
        body = "\n".join(lines)
        text = f"{head}<!-- {name} -->\n{body}\n<!-- end of {name} -->{tail}"
    page.write_text(text, encoding="utf-8")


def cost_lines(results: Path) -> Iterator[str]:
    """Yield the cost table in Markdown: one file's counts, and the times of all of them."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("fusion-cost-*.json"))]
    counted = {row["preset"]: row for row in found}
    first = counted.get("b") or counted.get("l") or (found[0] if found else None)
    if first is None:
        yield "Not measured yet."
        return
    timed = [f for f in found if "step_ms" in f["rows"][0]]
    heads = [f"ms per step ({f['preset']}, {f['device']})" for f in timed]
    yield " | ".join(["| portrait | audio | parameters | TFLOP per step", *heads]) + " |"
    yield "|---|---|" + "---:|" * (2 + len(timed))
    for index, row in enumerate(first["rows"]):
        cells = [row["portrait"], row["audio"]]
        cells += [f"{row['parameters'] / 1e6:.1f} M", f"{row['flop'] / 1e12:.3f}"]
        cells += [f"{f['rows'][index]['step_ms']:.2f}" for f in timed]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield f"Parameters and FLOPs are those of `{first['preset']}`, without the audio projector."


def effect_lines(results: Path) -> Iterator[str]:
    """Yield the table of effects in Markdown."""
    path = results / "fusion-effect.json"
    if not path.exists():
        yield "Not measured yet."
        return
    found = json.loads(path.read_text())
    yield (
        "| portrait | audio | steps | error of the noise | lips r | with other audio | "
        "portrait error | motion |"
    )
    yield "|---|---|" + "---:|" * 6
    columns = ("noise_error", "lips_r", "lips_r_shuffled", "portrait_error", "motion_ratio")
    for row in found["rows"]:
        cells = [row["portrait"], row["audio"], str(row["steps"])]
        cells += [f"{row[name]:.3f}" for name in columns]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield (
        f"Each row trained for {found['seconds']:g} s of one core, batches of {found['batch']}; "
        f"{found['rows'][0]['judged_clips']} clips of {found['frames']} frames evaluated, DDPM "
        f"with {found['sampler_steps']} steps."
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cost = commands.add_parser("cost", help="parameters, FLOPs, milliseconds")
    cost.add_argument("--preset", default="b", help="s, b, l, xl, or tiny (%(default)s)")
    cost.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    cost.add_argument("--repeats", type=int, default=20, help="timed calls; 0: count only")
    effect = commands.add_parser("effect", help="train small and judge")
    effect.add_argument("--data", type=Path, required=True, help="the data folder")
    effect.add_argument("--cache", type=Path, required=True, help="decoded frames")
    effect.add_argument("--weights", type=Path, help="of the embedded model (the package's)")
    effect.add_argument("--seconds", type=float, default=75.0, help="of training (%(default)s)")
    effect.add_argument("--batch", type=int, default=8)
    effect.add_argument("--frames", type=int, default=64, help="judged (%(default)s)")
    effect.add_argument("--sampler-steps", type=int, default=50)
    for part in (cost, effect):
        part.add_argument("--threads", type=int, help="CPU threads (torch's choice)")
        part.add_argument("--json", action="store_true", help="print the JSON line only")
        part.add_argument("--save", action="store_true", help="keep the JSON in results/")
        add_limit(part)
    commands.add_parser("table", help="write docs/fusion.md from results/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print rows as they come, and the whole as the last line."""
    options = _options(argv)
    if options.command == "table":
        write_tables(PAGE, RESULTS)
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.command == "cost":
        result = measure_cost(options)
        name = f"fusion-cost-{options.preset}-{result['device_type']}.json"
    else:
        result, name = measure_effect(options), "fusion-effect.json"
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""The fusion benchmark counts, trains a moment, judges, and fills its page."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.small_paper_model import CONFIG
from torch import nn

from letstalk_rt.errors import InputError

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench_fusion.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_fusion", BENCH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "bench_fusion", module)
    spec.loader.exec_module(module)
    module.TINY = CONFIG  # type: ignore[attr-defined]
    module.RESULTS = tmp_path / "results"  # type: ignore[attr-defined]
    module.PAGE = tmp_path / "page.md"  # type: ignore[attr-defined]
    return module


class Model:
    """What the benchmark needs of the embedded model."""

    def __init__(self) -> None:
        self.latent_mean, self.latent_scale = torch.zeros(4, 1, 1), torch.ones(4, 1, 1)
        self.autoencoder = self.landmarks = self
        self.read = nn.Linear(64, 142 * 2, bias=False).requires_grad_(False)

    def decode_landmarks(self, latents: torch.Tensor) -> torch.Tensor:
        return self.read(latents.flatten(-3)).unflatten(-1, (-1, 2))


def spoken(bench: ModuleType, count: int) -> list[Any]:
    torch.manual_seed(0)
    return [
        bench.LatentClip(torch.randn(12, 4, 4, 4), torch.randn(12, 3, 16), 1.0)
        for _ in range(count)
    ]


def test_the_last_line_has_a_row_for_every_pair(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["cost", "--preset", "tiny", "--device", "cpu", "--repeats", "1", "--save"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    pairs = {(row["portrait"], row["audio"]): row for row in result["rows"]}
    assert len(pairs) == 9 and all(row["step_ms"] > 0 for row in result["rows"])
    assert pairs["siamese", "direct"]["parameters"] > pairs["direct", "direct"]["parameters"]
    assert json.loads((bench.RESULTS / "fusion-cost-tiny-cpu.json").read_text()) == result


def test_training_lowers_the_error(bench: ModuleType) -> None:
    clips = spoken(bench, 2)
    denoiser, steps = bench.train(CONFIG, clips, 1.5, 4)
    assert steps > 3
    chance = torch.Generator().manual_seed(0)
    batch = bench.draw(clips, CONFIG, 16, chance)
    untrained = bench.PaperDenoiser(CONFIG)
    errors = [
        bench.diffusion_loss(d, bench.Diffusion(), batch, torch.Generator().manual_seed(1))["noise"]
        for d in (denoiser, untrained)
    ]
    assert errors[0].mean() < errors[1].mean()


def test_a_batch_begins_with_the_portrait_where_there_is_no_past(bench: ModuleType) -> None:
    clip = bench.LatentClip(
        torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 4, 4), torch.zeros(5, 3, 16), 1.0
    )
    latents, _, portraits, memories = bench.draw(
        [clip], CONFIG, 32, torch.Generator().manual_seed(0)
    )
    for first, portrait, memory in zip(
        latents[:, 0, 0, 0, 0], portraits[:, 0, 0, 0], memories[:, :, 0, 0, 0], strict=True
    ):
        assert memory.tolist() == [float(portrait)] * 2, "no start has two frames before it"
        assert first in (0, 1)


def test_a_denoiser_is_judged_by_lips_portrait_and_motion(bench: ModuleType) -> None:
    figures = bench.judge(Model(), bench.PaperDenoiser(CONFIG).eval(), spoken(bench, 3), 8, 2)
    assert figures["judged_clips"] == 3
    assert np.isfinite(list(figures.values())).all()
    assert -1 <= figures["lips_r"] <= 1 and figures["motion_ratio"] > 0


def test_the_page_gets_its_tables(bench: ModuleType) -> None:
    places = ("<!-- cost -->\nold\n<!-- end of cost -->", "<!-- effect -->\n<!-- end of effect -->")
    bench.PAGE.write_text("A\n" + "\nB\n".join(places) + "\nC\n")
    bench.RESULTS.mkdir()
    bench.main(["table"])
    assert bench.PAGE.read_text().count("Not measured yet.") == 2
    bench.main(["cost", "--preset", "tiny", "--device", "cpu", "--repeats", "1", "--save"])
    row = {"portrait": "direct", "audio": "siamese", "steps": 7, "judged_clips": 3}
    names = ("noise_error", "lips_r", "lips_r_shuffled", "portrait_error", "motion_ratio")
    row |= dict.fromkeys(names, 0.25)
    effect = {"seconds": 75, "batch": 8, "frames": 64, "sampler_steps": 50, "rows": [row]}
    (bench.RESULTS / "fusion-effect.json").write_text(json.dumps(effect))
    bench.main(["table"])
    text = bench.PAGE.read_text()
    assert "| direct | siamese | 7 | 0.250 |" in text and "old" not in text
    assert "| symbiotic | direct | 0.2 M |" in text and "ms per step (tiny" in text
    assert text.startswith("A\n") and text.endswith("\nC\n")


def test_a_page_without_places_is_told(bench: ModuleType) -> None:
    bench.PAGE.write_text("nothing here")
    with pytest.raises(InputError, match="no markers for the table of cost"):
        bench.main(["table"])

"""The report of an evaluation: one HTML file with its tables, plots and images."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from letstalk_rt.training.evaluation.clips import EvaluationResult, Row
from letstalk_rt.training.evaluation.interior import worst_first

WORST = 10
"""Number of clips whose mouths are shown first."""

_WIDTH, _HEIGHT = 720, 150
_COLORS = ("#1f5fa8", "#c2571a", "#3a7d34")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
.bars td:nth-child(2), .bars th:nth-child(2) { text-align: left }
.met { color: #1d6b2a } .missed { color: #a8321f } img { max-width: 100% } svg { max-width: 100% }
.wide { overflow-x: auto } h3 { margin-bottom: .2rem; font-size: 1rem }
"""


@dataclass(frozen=True)
class Bar:
    """The range that a figure should reach.

    Attributes:
        what: Description of the figure.
        low: Lower bound.
        high: Upper bound.
    """

    what: str
    low: float = -np.inf
    high: float = np.inf

    def met(self, value: float) -> bool:
        """Return whether a value is in the range; NaN is not."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == -np.inf:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high == np.inf else f"{self.low:g} to {self.high:g}"


BARS = {
    "psnr": Bar("reconstruction, dB", low=30),
    "psnr_mouth": Bar("reconstruction of the mouth, dB", low=27),
    "sharpness_ratio": Bar("sharpness of reconstruction over the true frames'", low=0.85),
    "mouth_corr_grid": Bar("mouth opening, generated against true, GRID's clips", low=0.68),
    "mouth_corr_filmed": Bar("the same, other filmed clips", low=0.46),
    "mouth_corr_shuffled": Bar("the same with another clip's audio", high=0.08),
    "mouth_lag": Bar("best lag, frames", low=0, high=0),
    "opening_range_ratio": Bar("range of the mouth opening over the true one's", 0.85, 1.15),
    "closure_recall": Bar("share of true closures at which the lips close", low=0.7),
    "open_portrait_gap": Bar("lip gap in silence of portraits with parted lips", high=0.03),
    "head_range_ratio": Bar("range of head motion over the true one's", 0.8, 1.2),
    "blinks_per_min": Bar("blinks per minute", 12, 22),
    "identity_ratio": Bar("identity cosine to the portrait over the true frames'", low=0.97),
    "long_identity_ratio": Bar("the same in the long run", low=0.85),
    "drift_identity_p": Bar("chance of so large an identity slope without drift", low=0.05),
    "sharpness_generated": Bar("sharpness of generated faces over the true ones'", low=0.9),
    "interior_contrast_ratio": Bar("contrast inside open mouths over the true ones'", 0.85, 1.2),
    "interior_ab": Bar("distance of their mean colours, a and b of CIELAB", high=4),
    "interior_shimmer": Bar("change inside them between frames over the true one", high=1.2),
    "seam_flicker": Bar("change at seams over change within windows", high=1.1),
    "silence_openness_ratio": Bar("lip gap in silence over the closed portrait's", 0.9, 1.1),
    "silence_lip_height_ratio": Bar("height of the lips, gap included, likewise", 0.9, 1.1),
    "fps": Bar("frames per second, audio to composited 512 px frame", low=25),
    "window_p99_ms": Bar("99th percentile of a window of 4 frames, ms", high=160),
}
"""The goals of the embedded model."""


def write_report(findings: EvaluationResult, path: Path, *, pictures: bool = True) -> None:
    """Write the report as one file with embedded images and plots.

    Without `pictures` it holds no faces of the data folder and may be published.
    """
    shown = findings.sheets if pictures else []
    mouths = worst_first(findings.clips, findings.mouths) if pictures else []
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>letstalk eval</title>",
        f"<style>{_STYLE}</style><h1>letstalk eval</h1>",
        "<h2>Bars</h2>",
        _bars(findings.figures),
        "<h2>All figures</h2>",
        _table([{"figure": k, "value": v if v is not None else "-"} for k, v in
                findings.figures.items()]),
        _long_plots(findings.slices),
        "<h2>Mouth opening: true and generated</h2>",
        *(f"<h3>{html.escape(name)}</h3>{plot(('true', 'generated'), both)}"
          for name, both in findings.curves),
        *([f"<h2>Mouths: true above generated, the worst {WORST} first</h2>"] if mouths else []),
        *(f"<h3>{html.escape(name)}</h3>{_image(sheet)}" for name, sheet in mouths[:WORST]),
        *(["<h2>The other mouths</h2>"] if mouths[WORST:] else []),
        *(f"<h3>{html.escape(name)}</h3>{_image(sheet)}" for name, sheet in mouths[WORST:]),
        *(["<h2>Images: true above generated</h2>"] if shown else []),
        *(f"<h3>{html.escape(name)}</h3>{_image(sheet)}" for name, sheet in shown),
        "<h2>Clips</h2>",
        _table(findings.clips),
        "<h2>Still portraits</h2>",
        _table(findings.stills),
        "</html>",
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


def plot(names: Sequence[str], lines: Sequence[np.ndarray] | np.ndarray) -> str:
    """Return lines over time as SVG, with gaps where a value is not finite."""
    whole = np.concatenate([np.asarray(line, float) for line in lines])
    whole = whole[np.isfinite(whole)]
    if not len(whole):
        return "<p>no data</p>"
    low, high = float(whole.min()), float(whole.max())
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low, high)
    drawn = [
        f'<path d="{_path(np.asarray(line, float), low, high)}" fill=none stroke="{color}"/>'
        for line, color in zip(lines, _COLORS, strict=False)
    ]
    labels = " ".join(
        f'<tspan fill="{color}">{html.escape(name)}</tspan>'
        for name, color in zip(names, _COLORS, strict=False)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width={_WIDTH} height={_HEIGHT} role=img '
        f'font-size=12 font-family=sans-serif>'
        f'<text x=4 y=12>{high:.3g}</text><text x=4 y={_HEIGHT - 4}>{low:.3g}</text>'
        f'<text x=60 y=12>{labels}</text>{"".join(drawn)}</svg>'
    )  # fmt: skip


def _path(line: np.ndarray, low: float, high: float) -> str:
    x = np.linspace(50, _WIDTH - 5, max(len(line), 2))
    y = _HEIGHT - 8 - (line - low) / (high - low) * (_HEIGHT - 28)
    words, pen = [], "M"
    for across, down in zip(x, y, strict=False):
        if np.isfinite(down):
            words.append(f"{pen}{across:.1f} {down:.1f}")
        pen = "L" if np.isfinite(down) else "M"
    return "".join(words)


def _long_plots(slices: Sequence[Row]) -> str:
    if not slices:
        return ""
    names = [name for name in slices[0] if name != "start_s"]
    plots = "".join(
        f"<h3>{name}</h3>{plot((name,), [np.array([row[name] for row in slices], float)])}"
        for name in names
    )
    return f"<h2>Long run, slices of ten seconds</h2>{plots}{_table(slices)}"


def _bars(figures: Mapping[str, float | int | str | None]) -> str:
    rows = []
    for name, bar in BARS.items():
        value = figures.get(name)
        if not isinstance(value, int | float):
            continue
        word = "met" if bar.met(value) else "missed"
        rows.append(
            f"<tr><td>{name}<td>{bar.what}<td>{value:.3f}<td>{bar}<td class={word}>{word}</tr>"
        )
    head = "<tr><th>figure<th>what<th>measured<th>bar<th></tr>"
    return f"<table class=bars>{head}{''.join(rows)}</table>"


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return "<p>none</p>"
    names = list(rows[0])
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(name, '-'))}" for name in names) + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else html.escape(str(value))


def _image(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((1100, 1100))
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=80)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode()}">'

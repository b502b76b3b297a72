"""The badge is there, can be read, and touches nothing else."""

from pathlib import Path

import av
import numpy as np
import pytest

from letstalk_rt.portrait.watermark import STATEMENT, with_badge
from letstalk_rt.recording.file import write_video


@pytest.mark.parametrize(
    "size, level", [((256, 256), 0), ((256, 256), 255), ((512, 384), 128), ((608, 1080), 255)]
)
def test_it_stands_out_in_the_lower_left_and_nowhere_else(
    size: tuple[int, int], level: int
) -> None:
    plain = np.full((*size, 3), level, np.uint8)
    shown = with_badge(plain)
    rows, cols = np.nonzero((shown != plain).any(-1))
    assert rows.min() > 0.85 * size[0] and cols.max() < 0.45 * size[1]
    patch = shown[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1].astype(int)
    assert patch.max() - patch.min() > 90  # light words on dark
    assert (plain == level).all() and shown is not plain


@pytest.mark.parametrize("size", [(2, 2), (64, 20), (20, 64)])
def test_tiny_pictures_do_no_harm(size: tuple[int, int]) -> None:
    assert with_badge(np.zeros((*size, 3), np.uint8)).shape == (*size, 3)


def test_files_carry_badge_and_statement_unless_told_not_to(tmp_path: Path) -> None:
    seen = {}
    for badge in (True, False):
        path = tmp_path / f"{badge}.mp4"
        picture = np.full((256, 256, 3), 128, np.uint8)
        write_video(path, [picture] * 3, np.zeros(1920, "f4"), 16_000, badge=badge)
        with av.open(str(path)) as container:
            assert container.metadata["comment"] == STATEMENT
            frame = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        seen[badge] = np.ptp(frame[200:, :128])
    assert seen[True] > 90 and seen[False] < 20

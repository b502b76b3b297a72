"""The benchmark of camera drive: its films, and how its figures follow from what was counted."""

import os

import bench_camera
import camera_films
import camera_page
import numpy as np
import pytest
from camera_probes import COUNTERS, PARTS, Counters
from camera_rate import driving_ms, figures


def test_the_face_of_a_film_moves_without_jerks_from_side_to_side():
    places = np.array([camera_films.place(number) for number in range(4 * 25)])
    assert places.max() - places.min() > 20
    assert np.abs(np.diff(places)).max() < 0.5 * (places.max() - places.min())
    np.testing.assert_allclose(places[:50], places[50:])
    rest = np.abs(np.diff(places)) < 1e-9
    assert rest.mean() > 0.6


def test_a_film_is_read_again_as_it_was_written(tmp_path):
    import av

    frames = [np.full((48, 64, 3), level, np.uint8) for level in (40, 120, 200)]
    camera_films.write_film(tmp_path / "film.y4m", frames)
    with av.open(str(tmp_path / "film.y4m")) as container:
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in read] == [(48, 64, 3)] * 3
    np.testing.assert_allclose([frame.mean() for frame in read], [40, 120, 200], atol=3)


@pytest.fixture
def counters(tmp_path, monkeypatch):
    monkeypatch.setenv(COUNTERS, "none")  # restored afterwards
    return Counters.create(tmp_path / "counters")


def test_what_other_processes_count_is_read_from_their_file(counters):
    theirs = Counters.given()
    with theirs.stage("read"):
        sum(range(100_000))
    with theirs.stage("unknown"):
        pass
    calls, cpu_s, wall_s = counters.values().T
    read = PARTS.index("read")
    assert calls.tolist() == [float(name == "read") for name in PARTS]
    assert cpu_s[read] > 0 and wall_s[read] > 0


def parts(**values):
    """Return what was counted: calls, processor time and time of each part, in s."""
    return np.array([values.get(name, (0.0, 0.0, 0.0)) for name in PARTS])


def test_the_figures_of_the_rate_follow_from_what_was_counted():
    counted = parts(read=(250, 5.0, 6.25), step=(60, 9.0, 6.0), sample=(60, 2.4, 2.0))
    found = figures(np.array([240, 10, 60, 3, 25, 1.0]), counted, 10.0)
    assert found["fps"] == 24.0 and found["repeated_share"] == 0.04
    assert found["reduced_share"] == 0.1 and found["missed_share"] == 0.05
    assert found["read_fps"] == 25.0 and found["read_ms"] == 25.0 and found["step_ms"] == 100.0
    assert found["cpu_ms_per_frame"]["read"] == 20.0
    assert found["cpu_ms_per_frame"]["generate"] == 36.0
    assert found["cores"] == 1.5
    still = figures(
        np.array([250, 0, 60, 0, 0, 1.0]), parts(sample=(60, 1.2, 1), step=(60, 8, 6)), 10.0
    )
    assert driving_ms(still, found) == 5.0


def test_the_numbers_of_frames_are_in_the_film():
    frames = [np.full((64, 64, 3), 90, np.uint8)] * 700
    film = list(camera_films.numbered(frames))
    side = camera_films.HEIGHT // camera_films.NUMBER_BITS
    for number in (0, 1, 2, 513, 699):
        bits = film[number][side // 2 :: side, 20, 1] > 128
        assert sum(1 << bit for bit in np.flatnonzero(bits)) == number


def shown(delay_s, rate_hz=25.0, seconds=20, noise=0.0):
    """Return times in ms and frames of what a film shows so much later."""
    rng = np.random.default_rng(0)
    times_s = np.arange(0, seconds, 1 / rate_hz) + rng.uniform(0, 0.004, int(seconds * rate_hz))
    number = np.floor((times_s - delay_s) * 25).astype(int)
    lefts = np.array([camera_films.place(n % 200) for n in number])
    x = np.arange(24) * 20.0
    frames = np.stack([np.exp(-((x - left - 150) ** 2) / 3000) for left in lefts])
    return times_s * 1000, 200 * frames + noise * rng.standard_normal(frames.shape)


@pytest.mark.parametrize("delay_s", [0.12, 0.31, 0.7])
def test_the_delay_of_each_move_is_found(delay_s):
    mirror_ms, mirror = shown(0.0)
    avatar_ms, avatar = shown(delay_s, noise=2.0)
    moves = camera_page.crossings(mirror_ms, camera_page.course(mirror))
    followed = camera_page.crossings(avatar_ms, camera_page.course(avatar))
    delays = camera_page.delays_ms(moves, followed)
    assert 18 <= len(moves) <= 20 and len(delays) >= 18
    np.testing.assert_allclose(delays, 1000 * delay_s, atol=45)
    assert np.median(delays) == pytest.approx(1000 * delay_s, abs=30)


def test_a_move_that_is_not_followed_has_no_delay():
    assert camera_page.delays_ms([0.0, 1000.0, 3000.0], [300.0, 1400.0]) == [300.0, 400.0]


def test_an_avatar_is_compared_at_the_delay_at_which_it_agrees_best():
    rng = np.random.default_rng(1)
    driver = np.cumsum(rng.standard_normal((300, 3)), 0) / 20
    mirror = np.stack([1000 + 40.0 * np.arange(600), np.arange(600) % 300], 1)
    times_ms = 1000 + 40.0 * np.arange(20, 580) + 7.0
    number = ((times_ms - 340 - 1000) // 40).astype(int)
    avatar = 0.5 * driver[number % 300] + 0.02 * rng.standard_normal((560, 3))
    found = camera_page.follow(mirror, times_ms, avatar, driver)
    assert found["delay_ms"] == pytest.approx(340, abs=40)
    assert min(found[name] for name in ("yaw", "pitch", "roll")) > 0.95


def test_an_angle_that_hardly_changes_is_not_compared():
    rng = np.random.default_rng(2)
    driver = np.cumsum(rng.standard_normal((300, 3)), 0) / 20 * [1.0, 0.001, 1.0]
    mirror = np.stack([40.0 * np.arange(300), np.arange(300)], 1)
    times_ms = 40.0 * np.arange(20, 290)
    avatar = driver[np.arange(20, 290) - 5] + 0.02 * rng.standard_normal((270, 3))
    found = camera_page.follow(mirror, times_ms, avatar, driver)
    assert found["delay_ms"] == pytest.approx(200, abs=40)
    assert np.isnan(found["pitch"]) and min(found["yaw"], found["roll"]) > 0.95


def test_a_part_has_to_be_chosen():
    with pytest.raises(SystemExit, match="--rate"):
        bench_camera.main([])
    assert os.environ.get(COUNTERS) is None

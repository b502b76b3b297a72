"""What a mood moves is compared with how people differ; nods, winks and listening are found."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.small_model import make_motion_model, make_portrait

from letstalk_rt.errors import InputError
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.performance import MOODS
from letstalk_rt.training.evaluation import performance
from letstalk_rt.training.evaluation.performance import (
    WATCHED,
    Performed,
    between_people,
    cost_ms,
    gesture_figures,
    listening_figures,
    measures,
    mood_figures,
    openings,
    voice_pattern,
)
from letstalk_rt.training.evaluation.whole_face import CHANNELS, FaceMotion

EYES = {33: (40, 50), 133: (60, 50), 362: (80, 50), 263: (100, 50)}
LIDS = {159: (50, 46), 145: (50, 54), 386: (90, 46), 374: (90, 54)}
BROWS = {55: (60, 38), 285: (80, 38), 70: (40, 40), 300: (100, 40)}


def face(frames=60, raised=0.0, **levels):
    """Return a face that stands still, but for a head that trembles."""
    points = np.zeros((frames, 478, 2))
    for place, (x, y) in (EYES | LIDS | BROWS).items():
        points[:, place] = x, y - raised * (place in BROWS)
    channels = 0.1 * np.random.default_rng(0).random((frames, len(CHANNELS)))
    for name, level in levels.items():
        channels[:, CHANNELS.index(name)] += level
    return FaceMotion(channels, points)


def test_levels_are_medians_and_brows_are_measured_above_the_eyes():
    plain, changed = measures(face()), measures(face(smile=0.3, raised=6.0))
    assert changed["smile"] - plain["smile"] == pytest.approx(0.3)
    for name in ("inner_brows", "outer_brows"):
        assert changed[name] - plain[name] == pytest.approx(6 / 60)
    assert plain["inner_brows"] == pytest.approx(12 / 60)
    assert {name for watched in WATCHED.values() for name in watched} <= set(plain)


def test_brows_of_a_tilted_head_are_as_high():
    upright, turn = face(), np.array([[0.8, -0.6], [0.6, 0.8]])
    tilted = FaceMotion(upright.channels, upright.points @ turn.T)
    assert measures(tilted)["inner_brows"] == pytest.approx(measures(upright)["inner_brows"])


def clip(kind="real", pose=True, **levels):
    motion = face(**levels)
    return SimpleNamespace(kind=kind, pose=pose or None, motion=motion)


def test_people_differ_by_what_filmed_clips_say(monkeypatch):
    monkeypatch.setattr(performance, "true_motion", lambda clip: clip.motion)
    clips = [clip(smile=level) for level in (0.0, 0.2, 0.4)]
    others = [clip("generated", smile=3.0), clip(pose=False, smile=3.0)]
    assert between_people(clips + others)["smile"] == pytest.approx(np.std([0, 0.2, 0.4]))
    with pytest.raises(InputError, match="three filmed clips"):
        between_people(clips[:2] + others)


def performed(**cheerful):
    motions = {name: face() for name in MOODS} | {"cheerful": face(**cheerful)}
    identity = dict.fromkeys(MOODS, 0.9) | {"cheerful": 0.81}
    heard = face().channels[:, 0]
    return Performed("one", motions, identity, heard)


def test_a_mood_shows_where_it_moves_half_a_deviation():
    people = dict.fromkeys(measures(face()), 0.2)
    figures = mood_figures([performed(smile=0.3), performed(smile=0.05)], people)
    assert figures["cheerful_smile"] == pytest.approx((1.5 + 0.25) / 2)
    assert figures["cheerful_smile_shown"] == 1 and figures["warm_smile_shown"] == 0
    assert figures["cheerful_identity"] == pytest.approx(0.9)
    assert figures["warm_lip_r"] == 0 and figures["portraits"] == 2
    parted = mood_figures([performed(gap=0.2)], people)
    assert parted["cheerful_closures"] < -0.2
    faceless = replace(performed(), identity=dict.fromkeys(MOODS, np.nan))
    some = mood_figures([performed(), faceless], people)
    assert some["cheerful_identity"] == pytest.approx(0.9), "what is not known is left out"


def test_a_nod_and_a_wink_are_measured_against_the_same_face_without():
    still = face(45)
    nod, wink = face(45), face(45)
    nod.channels[18:24, CHANNELS.index("pitch")] -= 6.0
    nod.channels[21, CHANNELS.index("pitch")] -= 1.0
    wink.points[20, 386, 1] = 53.0
    found = performance._nod(nod, still) | performance._wink(wink, still)
    assert found["nod_deg"] == pytest.approx(7.0)
    assert found["nod_late_s"] == pytest.approx(21 / 25 - 0.8)
    assert found["wink_closed"] == pytest.approx(1 / 8) and found["wink_other"] == 1
    assert openings(still)[0] == pytest.approx([0.4, 0.4])
    none = found | {"nod_deg": 2.0, "wink_other": 0.2}
    rows = [Performed("a", gestures=found), Performed("b", gestures=none)]
    figures = gesture_figures(rows)
    assert (figures["nod_right"], figures["wink_right"]) == (1, 1)


def test_the_avatar_listens_as_wanted():
    found = listening_figures()
    assert 3 <= found["listening_nods_per_min"] <= 10
    assert found["listening_nods_in_pauses"] > 0.9 and found["listening_nods_in_silence"] == 0
    assert found["listening_gaze_kept"] < 0.4 and found["idle_gaze_kept"] == 1


def test_a_voice_pattern_has_phrases_pauses_and_silence():
    pattern = voice_pattern(60, 20)
    assert len(pattern) == 80 * 25 and not pattern[-500:].any()
    assert 0.6 < pattern[:1500].mean() < 0.95


def test_directing_costs_something_and_is_finite():
    pipeline = AvatarPipeline(make_motion_model())
    assert 0 < cost_ms(pipeline, make_portrait()) < float("inf")

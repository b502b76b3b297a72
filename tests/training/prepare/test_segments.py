"""Which videos and which parts of them are prepared."""

import json

import pytest

from letstalk_rt.errors import InputError
from letstalk_rt.training.prepare.segments import find_videos, listed_videos, whole_videos


@pytest.fixture
def hdtf(tmp_path):
    folder = tmp_path / "HDTF_dataset"
    folder.mkdir()
    link = "https://www.youtube.com/watch?v="
    texts = {
        "RD_annotion_time.txt": "Radio11.mp4 00:30-01:00\n",
        "RD_crop_wh.txt": "Radio11_0.mp4 300 480 40 480\n",
        "RD_video_url.txt": f"Radio11 {link}aBcD\n",
        "RD_resolution.txt": "Radio11.mp4 720\n",
        "WRA_annotion_time.txt": (
            "PaulRyan0.mp4 00:30-00:58 06:00-07:00 \nPaulRyan1.mp4 00:43-01:00\n"
        ),
        "WRA_crop_wh.txt": "PaulRyan0_0.mp4 339 546 21 546\nPaulRyan1_0.mp4 608 720 20 720\n",
        "WRA_video_url.txt": f"PaulRyan0 {link}eFgH\nPaulRyan1 {link}iJkL\n",
        "WRA_resolution.txt": "PaulRyan0.mp4 720\nPaulRyan1.mp4 1080\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def touch(folder, *names):
    paths = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        paths.append(path)
    return paths


class TestHDTF:
    def test_parts_have_their_times_squares_and_people(self, hdtf, tmp_path):
        paths = touch(tmp_path / "raw", "WRA_PaulRyan0.mp4", "iJkL.mkv")
        videos, missing = listed_videos(paths, [hdtf])
        assert [video.path for video in videos] == paths and missing == ["RD_Radio11"]
        (part,) = videos[0].segments  # the second one has no square: left out, as published
        assert (part.start_s, part.end_s, part.person) == (30, 58, "WRA_PaulRyan")
        assert videos[1].segments[0].person == "WRA_PaulRyan"
        assert part.region(1280, 720) == (339, 21, 885, 567)
        assert part.region(640, 360) == (169.5, 10.5, 442.5, 283.5)

    def test_radio_speakers_are_people_by_number(self, hdtf, tmp_path):
        videos, _ = listed_videos(touch(tmp_path / "raw", "Radio11.mp4"), [hdtf])
        assert videos[0].segments[0].person == "RD_Radio11"

    def test_a_time_that_is_none_is_named(self, hdtf, tmp_path):
        (hdtf / "RD_annotion_time.txt").write_text("Radio11.mp4 soon-01:00\n")
        with pytest.raises(InputError, match="'soon' is no time"):
            listed_videos(touch(tmp_path / "raw", "Radio11.mp4"), [hdtf])


class TestCelebV:
    def test_clips_are_grouped_by_video(self, tmp_path):
        box = {"top": 0.1, "bottom": 0.9, "left": 0.25, "right": 0.75}
        clips = {
            f"xY-z_{i}": {
                "ytb_id": "xY-z",
                "duration": {"start_sec": 10.0 * i, "end_sec": 10.0 * i + 4.5},
                "bbox": box,
            }
            for i in range(2)
        }
        path = tmp_path / "celebvhq_info.json"
        path.write_text(json.dumps({"clips": clips}))
        videos, missing = listed_videos(touch(tmp_path / "raw", "xY-z.mp4"), [path])
        (video,) = videos
        assert not missing and [s.start_s for s in video.segments] == [0, 10]
        assert video.segments[0].region(1000, 500) == (250, 50, 750, 450)
        assert all("-" not in s.name for s in video.segments)  # a source is named up to its last

    def test_another_json_is_named(self, tmp_path):
        path = tmp_path / "other.json"
        path.write_text("[]")
        with pytest.raises(InputError, match="other.json is not CelebV-HQ's list"):
            listed_videos([], [path])


def test_an_unknown_list_is_named(tmp_path):
    with pytest.raises(InputError, match="no list that is known"):
        listed_videos([], [tmp_path])


def test_videos_are_found_at_any_depth_with_unique_names(tmp_path):
    paths = touch(tmp_path, "a/talk-1.mp4", "b/talk-1.webm", "b/notes.txt", "c/Other.MKV")
    found = find_videos([tmp_path])
    assert found == [paths[0], paths[1], paths[3]]
    videos = whole_videos(found, person_by_folder=True)
    assert [video.key for video in videos] == ["a_talk_1", "b_talk_1", "Other"]
    assert [video.segments[0].person for video in videos] == ["a", "b", "c"]


def test_a_folder_without_videos_is_named(tmp_path):
    with pytest.raises(InputError, match="no videos"):
        find_videos([tmp_path])

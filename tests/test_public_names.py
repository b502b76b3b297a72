"""What importing costs, and what is public."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import letstalk_rt
from letstalk_rt import errors

ROOT = Path(letstalk_rt.__file__).parents[1]


def modules_after(statement):
    code = f"{statement}\nimport sys\nsys.stdout.write(' '.join(sys.modules))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.split())


def test_importing_the_package_is_light():
    loaded = modules_after("import letstalk_rt")
    assert "letstalk_rt" in loaded
    assert not loaded & {"torch", "numpy", "soxr", "av", "PIL", "asyncio"}


def test_the_engine_knows_no_torch_and_no_transport():
    loaded = modules_after("from letstalk_rt import Avatar; import letstalk_rt.session.playout")
    assert "letstalk_rt.session.avatar" in loaded
    assert not loaded & {"torch", "aiortc", "av", "PIL", "starlette"}


def test_the_public_names_are_these():
    assert sorted(letstalk_rt.__all__) == [
        "AVFrame",
        "AtCapacity",
        "AudioFormatError",
        "Avatar",
        "AvatarSession",
        "CameraOptions",
        "ChatError",
        "ConfigError",
        "Conversation",
        "DependencyError",
        "EngineError",
        "Event",
        "FilmError",
        "ImageDamagedError",
        "InputError",
        "Interrupted",
        "LetsTalkError",
        "ModelLost",
        "MotionOptions",
        "NoFaceError",
        "NotAnImageError",
        "Portrait",
        "PortraitError",
        "PortraitWarning",
        "RecognitionError",
        "SegmentEnd",
        "SessionClosed",
        "SynthesisError",
        "TextError",
        "TooManyPixelsError",
        "WeightsError",
    ]


def test_a_public_name_is_the_thing_itself():
    for name in letstalk_rt.__all__:
        value = getattr(letstalk_rt, name)
        assert inspect.isclass(value), name
        assert value.__name__ == name
        assert name in dir(letstalk_rt)


def test_every_error_is_public():
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert tree <= set(letstalk_rt.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Avatarr"):
        _ = letstalk_rt.Avatarr


def test_the_version_is_a_number():
    assert [part.isdigit() for part in letstalk_rt.__version__.split(".")] == [True] * 3

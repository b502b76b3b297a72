"""The default portraits that ship with the package."""

from importlib.resources import files
from pathlib import Path


def list_avatars() -> dict[str, Path]:
    """Return the image file of each default avatar by name, in alphabetical order."""
    images = sorted(Path(str(item)) for item in files(__name__).iterdir())
    return {path.stem: path for path in images if path.suffix == ".jpg"}

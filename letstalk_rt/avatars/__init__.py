"""The portraits that come with the package."""

from importlib.resources import files
from pathlib import Path


def list_avatars() -> dict[str, Path]:
    """Give the picture file of each default avatar, by name, in alphabetical order."""
    pictures = sorted(Path(str(item)) for item in files(__name__).iterdir())
    return {path.stem: path for path in pictures if path.suffix == ".jpg"}

"""How to install the optional packages of the SDK."""


def pip_install(extra: str) -> str:
    """Return how to install an extra; with a wheel, its name stands in place of the dot."""
    return f"pip install '.[{extra}]' in a clone"

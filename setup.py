"""Which packages a wheel holds; everything else is in pyproject.toml.

The server lives in a src layout under server/. The pages are examples to copy from as well as
what the server hands out, so they stay in client_examples/ and install beside the server.
"""

from setuptools import find_packages, setup

PAGES = {
    "letstalk_server.browser": "client_examples/browser",
    "letstalk_server.overlay": "client_examples/overlay",
}

setup(
    packages=[*find_packages(include=["letstalk_rt*"]), *find_packages("server"), *PAGES],
    package_dir={"letstalk_server": "server/letstalk_server", **PAGES},
)

"""One thread for torch: the tests' networks are tiny, and more threads only wait for each other."""

import torch

pytest_plugins = ["support.browser_tools"]

torch.set_num_threads(1)

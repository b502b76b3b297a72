"""One thread for torch: the tests' networks are tiny, and more threads only wait for each other."""

import torch

torch.set_num_threads(1)

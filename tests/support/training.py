"""What several tests of training share."""

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def silent_parts(module):
    """Names of trained parameters that a loss did not reach, or not with finite gradients.

    A bias may rightly have none: a norm or a softmax behind it takes it out.
    """
    missed = []
    for name, parameter in module.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            missed.append(name)
        elif parameter.ndim > 1 and not parameter.grad.any():
            missed.append(name)
    return missed

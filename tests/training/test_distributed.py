"""Several processes join one group, by the backend of the device that they train on."""

import pytest
import torch
import torch.distributed as dist

from letstalk_rt.training import distributed


@pytest.fixture
def joined(monkeypatch):
    """The backends that were asked for, and the GPUs that were taken, on a machine with a GPU."""
    asked = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.append(index))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.append(backend))
    return asked


@pytest.mark.parametrize(
    ("device", "wanted"),
    [("cpu", ["gloo"]), ("cuda", [0, "nccl"]), ("auto", [0, "nccl"])],
)
def test_a_cpu_needs_no_nccl_even_beside_a_gpu(joined, device, wanted):
    distributed.init_process_group(device)
    assert joined == wanted


def test_a_process_that_torchrun_did_not_start_joins_nothing(joined, monkeypatch):
    monkeypatch.delenv("RANK")
    distributed.init_process_group("cuda")
    assert joined == []

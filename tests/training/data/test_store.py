"""Latents on disk: encoded once and in parts, by whoever comes, and read where they lie."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from letstalk_rt.errors import InputError
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.training.data import prefetch
from letstalk_rt.training.data import store as store_module
from letstalk_rt.training.data.damaged import ClipError
from letstalk_rt.training.data.prefetch import Prefetch
from letstalk_rt.training.data.store import Store

IDENTITY = {"autoencoder": "abc", "dtype": "bfloat16"}
NAMES = [f"clip{i}" for i in range(7)]


def arrays(name):
    seed = NAMES.index(name)
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(2, 3 + seed, 4, 2, 2, generator=generator).bfloat16(),
        "quiet": torch.arange(3 + seed) % 2 == 0,
        "moments": torch.full((4, 2), seed, dtype=torch.float64),
        "weight": torch.tensor(0.5),
    }


def same(name):
    """Read nothing: the arrays of these clips follow from their names."""
    return name


def make_store(folder, **identity):
    return Store(folder, IDENTITY | identity, clips_per_shard=2)


def assert_complete(folder):
    found = make_store(folder).arrays()
    assert sorted(found) == NAMES
    for name in NAMES:
        for key, value in arrays(name).items():
            assert found[name][key].dtype == value.dtype
            assert torch.equal(found[name][key], value), (name, key)


def test_what_is_stored_comes_back_from_the_disk(tmp_path):
    make_store(tmp_path).encode(NAMES, same, arrays)
    assert_complete(tmp_path)
    latents = make_store(tmp_path).arrays()["clip0"]["latents"]
    path = next(tmp_path.glob("shard-00000.bin"))
    place = json.loads(path.with_suffix(".json").read_text())["clip0"]["latents"]["offset"]
    bits = np.frombuffer(path.read_bytes(), np.int16, latents.numel(), place)
    assert np.array_equal(latents.view(torch.int16).numpy().ravel(), bits)


def test_arrays_are_mapped_and_not_read_into_memory(tmp_path):
    """What changes on the disk afterwards is seen: nothing had been read before."""
    make_store(tmp_path).encode(NAMES, same, arrays)
    latents = make_store(tmp_path).arrays()["clip0"]["latents"]
    path = tmp_path / "shard-00000.bin"
    place = json.loads(path.with_suffix(".json").read_text())["clip0"]["latents"]["offset"]
    with path.open("r+b") as file:
        file.seek(place)
        file.write(torch.full_like(latents, 7.0).view(torch.int16).numpy().tobytes())
    assert (latents == 7).all()


def test_a_stopped_encoding_goes_on_with_what_is_missing(tmp_path):
    seen = []

    def breaking(name):
        if name == "clip4":
            raise KeyboardInterrupt
        seen.append(name)
        return arrays(name)

    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path).encode(NAMES, same, breaking)
    assert seen == NAMES[:4]
    again = []
    make_store(tmp_path).encode(NAMES, same, lambda name: again.append(name) or arrays(name))
    assert again == NAMES[4:]
    assert_complete(tmp_path)


def test_processes_share_the_work_and_wait_for_each_other(tmp_path, monkeypatch):
    place, meet = threading.local(), threading.Barrier(2)
    monkeypatch.setattr(store_module, "world_size", lambda: 2)
    monkeypatch.setattr(store_module, "rank", lambda: place.rank)
    monkeypatch.setattr(store_module, "is_main_process", lambda: place.rank == 0)
    monkeypatch.setattr(store_module, "barrier", meet.wait)
    seen = {0: [], 1: []}

    def work(rank):
        place.rank = rank
        make_store(tmp_path).encode(
            NAMES, same, lambda name: seen[rank].append(name) or arrays(name)
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == {0: ["clip0", "clip1", "clip4", "clip5"], 1: ["clip2", "clip3", "clip6"]}
    assert_complete(tmp_path)


def test_later_clips_get_shards_of_their_own(tmp_path):
    make_store(tmp_path).encode(NAMES[:3], same, arrays)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}
    make_store(tmp_path).encode(NAMES, same, arrays)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert_complete(tmp_path)


def test_damaged_clips_are_listed_left_out_and_tried_again(tmp_path, capsys):
    mended = set()

    def read(name):
        if name in ("clip1", "clip4") and name not in mended:
            raise ClipError(f"clip {name!r} cannot be read")
        return name

    make_store(tmp_path).encode(NAMES, read, arrays)
    assert sorted(make_store(tmp_path).arrays()) == [
        n for n in NAMES if n not in ("clip1", "clip4")
    ]
    listed = capsys.readouterr().err
    assert "2 clips are left out" in listed and "'clip1'" in listed and "'clip4'" in listed
    mended.add("clip4")
    make_store(tmp_path).encode(NAMES, read, arrays)
    assert sorted(make_store(tmp_path).arrays()) == [n for n in NAMES if n != "clip1"]
    assert "1 clips are left out" in capsys.readouterr().err
    mended.add("clip1")
    make_store(tmp_path).encode(NAMES, read, arrays)
    assert_complete(tmp_path)


def test_an_error_that_is_not_of_one_clip_stops_the_encoding(tmp_path):
    def read(name):
        raise InputError("prepare the videos again with --size 512")

    with pytest.raises(InputError, match="prepare the videos again"):
        make_store(tmp_path).encode(NAMES, read, arrays)


def test_the_next_clips_are_read_while_one_is_encoded(tmp_path):
    """The first is encoded only once the second has been read, which without threads never is."""
    read_second = threading.Event()

    def read(name):
        if name == "clip1":
            read_second.set()
        return name

    def encode(name):
        assert name != "clip0" or read_second.wait(60)
        return arrays(name)

    make_store(tmp_path).encode(NAMES[:2], read, encode)
    assert sorted(make_store(tmp_path).arrays()) == NAMES[:2]


def test_latents_of_another_autoencoder_are_refused(tmp_path):
    make_store(tmp_path).encode(NAMES[:1], same, arrays)
    with pytest.raises(InputError, match="made with another autoencoder; delete"):
        make_store(tmp_path, autoencoder="xyz").encode(NAMES[:1], same, arrays)


def test_a_fingerprint_tells_weights_apart():
    torch.manual_seed(0)
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint(a) != fingerprint(b)
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b)


class TestPrefetch:
    def test_batches_are_those_of_their_steps_whatever_is_drawn_ahead(self):
        def draw(generator):
            return torch.rand(3, generator=generator)

        with Prefetch(draw, 6, depth=4) as ahead, Prefetch(draw, 6, depth=0) as plain:
            whole = [ahead(step) for step in range(6)]
            assert all(torch.equal(plain(step), whole[step]) for step in range(6))
        with Prefetch(draw, 6) as resumed:
            assert torch.equal(resumed(4), whole[4])
        assert not torch.equal(whole[0], whole[1])

    def test_nothing_is_drawn_beyond_the_last_step(self):
        drawn = []
        with Prefetch(lambda generator: drawn.append(1), 2, depth=5) as batches:
            batches(0)
            batches(1)
        assert len(drawn) == 2

    def test_an_error_is_raised_at_its_step(self):
        def draw(generator):
            raise InputError("no clips")

        with Prefetch(draw, 3) as batches, pytest.raises(InputError, match="no clips"):
            batches(0)

    def test_what_steps_wait_is_counted(self, monkeypatch):
        """Five seconds pass between the moment a step asks and the one its batch is drawn."""
        clock, asked, drawn = [0.0], threading.Event(), threading.Semaphore(0)

        def monotonic():
            now_s = clock[0]
            asked.set()
            return now_s

        def draw(generator):
            assert asked.wait(60)
            clock[0] = 5.0
            drawn.release()
            return 1

        monkeypatch.setattr(prefetch, "time", SimpleNamespace(monotonic=monotonic))
        with Prefetch(draw, 2) as batches:
            batches(0)
            assert batches.waited_s == 5
            assert all(drawn.acquire(timeout=60) for _ in range(2))
            batches(1)  # it was drawn in the meantime
            assert batches.waited_s == 5

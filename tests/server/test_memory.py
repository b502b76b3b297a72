"""The server's process does not grow when its threads take turns, and shrinks when it is idle."""

import asyncio
import subprocess
import sys

import pytest

from letstalk_server import memory

REOPEN = """
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from letstalk_server.memory import share_freed_memory
from letstalk_server.webrtc.encoders import open_encoder

def resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1000

share_freed_memory()
threads = [ThreadPoolExecutor(1) for _ in range(4)]
rgb = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
encoder = open_encoder("VP8", 800_000)
for number in range(12):
    thread = threads[number % 4]
    thread.submit(encoder.encode, rgb, number, key_frame=False).result()
    if number == 0:
        before_mb = resident_mb()
    encoder.set_bitrate(800_000 + number)
print(resident_mb() - before_mb)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; only glibc has arenas")
def test_a_codec_that_each_thread_opens_again_takes_no_more_memory():
    done = subprocess.run(
        [sys.executable, "-c", REOPEN], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(done.stdout) < 8.0, "one codec takes 10 MB, and three more threads open it"


FREE = """
import gc
import re
from pathlib import Path

from letstalk_server.memory import return_freed_memory

def resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1000

pieces = [bytearray(20_000) for _ in range(4000)]
full_mb = resident_mb()
last = pieces[-1]  # keeps the heap as long as it is
pieces.append(pieces)
gc.disable()
del pieces
held_mb = resident_mb()
return_freed_memory()
print(full_mb - held_mb, held_mb - resident_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; only glibc keeps free memory")
def test_memory_that_is_free_goes_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-c", FREE], capture_output=True, text=True, timeout=120, check=True
    )
    kept_mb, returned_mb = map(float, done.stdout.split())
    assert kept_mb < 20 and returned_mb > 60, "80 MB were free"


GROW = """
import re
from pathlib import Path

from letstalk_server.memory import trim_heap

def resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1000

bytearray(3 << 20)  # from now on such pieces come from the heap
windows = [bytearray(3 << 20) for _ in range(8)]
above = [bytearray(2000) for _ in range(1000)]
full_mb = resident_mb()
windows.clear()
held_mb = resident_mb()
trim_heap()
print(full_mb - held_mb, held_mb - resident_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; only glibc keeps free memory")
def test_windows_below_the_end_of_the_heap_go_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-c", GROW], capture_output=True, text=True, timeout=120, check=True
    )
    kept_mb, returned_mb = map(float, done.stdout.split())
    assert kept_mb < 8 and returned_mb > 16, "25 MB were free"


async def test_free_memory_goes_back_while_there_are_sessions(monkeypatch):
    trims: list[int] = []
    monkeypatch.setattr(memory, "trim_heap", lambda: trims.append(1))
    monkeypatch.setattr(memory, "return_freed_memory", lambda: pytest.fail("it is not idle"))
    task = asyncio.create_task(memory.return_memory(["first"]))
    await asyncio.sleep(3.5 * memory.TRIM_S)
    assert len(trims) == 3
    task.cancel()


async def test_it_goes_back_when_the_last_session_has_ended(monkeypatch):
    calls, sessions = [], ["first"]
    monkeypatch.setattr(memory, "return_freed_memory", lambda: calls.append(len(sessions)))
    task = asyncio.create_task(memory.return_memory(sessions))
    await asyncio.sleep(3 * memory.IDLE_S)
    assert not calls
    sessions.clear()
    await asyncio.sleep(3 * memory.IDLE_S)
    assert calls == [0]
    task.cancel()

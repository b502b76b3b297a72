"""The benchmark of bad networks: its marks, its address translation, its judgement; and a short run
over a real link with an outage, where network namespaces are allowed."""

import json
import socket
import struct

import numpy as np
import pytest
from bad_network import marks
from bad_network.hosts import why_not
from bad_network.judging import judge, skews_ms
from bad_network.links import why_no_netem
from bad_network.nat import Nat
from bench_network import measure, write


@pytest.mark.parametrize("age", range(marks.OLD))
def test_marks_are_read_as_they_were_drawn(age):
    frame = np.full((256, 256, 3), 90, np.uint8)
    marks.draw(frame, age, age % 40)
    assert marks.read(frame[..., 1]) == (age, age % 40)
    blurred = (frame[..., 1].astype(int) * 2 // 3 + 40).astype(np.uint8)
    assert marks.read(blurred) == (age, age % 40)


def test_damaged_marks_and_those_of_silence_are_not_read():
    frame = np.zeros((128, 128, 3), np.uint8)
    marks.draw(frame, marks.OLD, 3)
    assert marks.read(frame[..., 0]) is None
    marks.draw(frame, 7, 3)
    frame[: marks.BLOCK, : marks.BLOCK] = 255 - frame[: marks.BLOCK, : marks.BLOCK]
    assert marks.read(frame[..., 0]) is None


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(source, target, payload=b"sixteen bytes ..."[:16]):
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!HHHH", 5000, 6000, 8 + len(payload), 0)
    pseudo = ends + struct.pack("!HH", 17, len(head) + len(payload))
    head = head[:6] + struct.pack("!H", checksum(pseudo + head + payload))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 1, 0, 64, 17, 0) + ends
    return ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + head + payload


def test_translated_packets_are_those_of_the_other_address_to_the_last_bit():
    nat = Nat("10.77.0.2")
    sent, answer = udp("10.77.0.2", "10.77.0.1"), udp("10.77.0.1", "10.77.0.100")
    assert nat.translate(sent, outwards=True) == sent
    nat.rebind()
    assert nat.translate(sent, outwards=True) == udp("10.77.0.100", "10.77.0.1")
    assert nat.translate(answer, outwards=False) == udp("10.77.0.1", "10.77.0.2")
    nat.rebind()
    assert nat.translate(answer, outwards=False) is None, "the old address is nobody's"


def recording(late_s=0.0, silent=(0, 0)):
    times = [at for at in np.arange(0, 20, 0.04) if not silent[0] < at < silent[1]]
    return {
        "shown": [(at, at, at % 0.8) for at in times],
        "heard": [at + late_s for at in np.arange(0, 20, 0.8)],
        "sounds": times,
        "states": [(0.0, "connected")],
        "session": "s",
    }


def test_a_recording_is_judged_by_skew_and_by_what_follows_an_outage():
    started = {"session": "s"}
    good = judge(recording(0.03), started, began_s=1.0, ended_s=None)
    assert good.passed and good.skew_p50_ms == pytest.approx(30) and good.in_step == 1
    assert good.fps == pytest.approx(25, abs=0.1) and good.picture_back_s is None
    assert not judge(recording(-0.2), started, began_s=1.0, ended_s=None).passed
    back = judge(recording(silent=(5, 11)), started, began_s=1.0, ended_s=10.0)
    assert back.passed and back.picture_back_s == pytest.approx(1.0, abs=0.05)
    assert not judge(recording(silent=(5, 13)), started, began_s=1.0, ended_s=10.0).passed
    gone = judge(recording(silent=(5, 30)), started, began_s=1.0, ended_s=10.0)
    assert gone.picture_back_s == float("inf") and not gone.passed
    assert not judge(recording(), {"session": "other"}, began_s=1.0, ended_s=None).passed
    assert skews_ms([(1.0, 1.0, 0.2)], []) == []
    repeated = [(1.0, 1.0, 0.2), (1.04, 1.04, 0.2), (1.08, 1.08, 0.24)]
    assert skews_ms(repeated, [0.82]) == pytest.approx([20, -20])


def test_a_case_that_is_measured_again_replaces_the_one_in_the_file_and_no_other(tmp_path):
    path = tmp_path / "network.json"
    write(path, {"cases": {"aiortc": {"loss": 1, "rate": 2}}})
    write(path, {"cases": {"aiortc": {"rate": 3}, "chromium": {"loss": 4}}, "link": "tun"})
    cases = {"aiortc": {"loss": 1, "rate": 3}, "chromium": {"loss": 4}}
    assert json.loads(path.read_text()) == {"cases": cases, "link": "tun"}


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_after_an_outage_of_five_seconds_picture_and_sound_go_on_in_the_same_connection():
    """The long form, with all cases and with Chromium, is `benchmarks/bench_network.py`."""
    netem = why_no_netem() is None
    seen = measure("aiortc", "outage", 4.0, netem=netem, warm_up_s=3.0)
    assert seen.same_session and seen.connections == 1
    assert seen.picture_back_s is not None and seen.picture_back_s < float("inf")
    assert seen.sound_back_s is not None and seen.sound_back_s < float("inf")
    # On a machine that is too busy for the model, no sound may come in time.
    assert seen.skew_p50_ms is None or abs(seen.skew_p50_ms) <= 80

"""Opus packets as a WebRTC peer sends them."""

from fractions import Fraction

import av
import numpy as np

from letstalk_server.webrtc.microphone_path import CLOCK_HZ

PACKET_SAMPLES = 960


def opus_packets(seconds=1.0, hz=440, shape=lambda wave: 12_000 * wave):
    encoder = av.CodecContext.create("libopus", "w")
    encoder.format, encoder.layout, encoder.sample_rate = "s16", "mono", CLOCK_HZ
    encoder.time_base = Fraction(1, CLOCK_HZ)
    t = np.arange(int(seconds * CLOCK_HZ)) / CLOCK_HZ
    pcm = shape(np.sin(2 * np.pi * hz * t)).astype(np.int16)
    packets = []
    for start in range(0, pcm.size, PACKET_SAMPLES):
        chunk = pcm[None, start : start + PACKET_SAMPLES]
        frame = av.AudioFrame.from_ndarray(chunk, format="s16", layout="mono")
        frame.sample_rate, frame.pts = CLOCK_HZ, start
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets

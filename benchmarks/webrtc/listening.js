// When the beeps of a track leave its jitter buffer, and how much later the loudspeaker plays them.

const LOUD = 0.03;
const QUIET_S = 0.3; // before a beep

/**
 * Call `note` with the time of each beep, milliseconds of `performance.now()`, until the track ends.
 * Through an AudioContext it would be 45 ms later, in a path that a listener to the page does not have.
 */
export async function listen(track, note) {
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  let quietS = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const samples = new Float32Array(value.numberOfFrames);
    value.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
    samples.forEach((sample, i) => {
      const loud = Math.abs(sample) > LOUD;
      // Timestamps are on the page's clock, in microseconds.
      if (loud && quietS > QUIET_S) note((value.timestamp + (1e6 * i) / value.sampleRate) / 1000);
      quietS = loud ? 0 : quietS + 1 / value.sampleRate;
    });
    value.close();
  }
}

/** Return how long after the jitter buffer the loudspeaker plays a sound, on average, milliseconds. */
export async function loudspeakerDelay(pc) {
  for (const report of (await pc.getStats()).values()) {
    if (report.type !== "media-playout") continue;
    return (1000 * report.totalPlayoutDelay) / report.totalSamplesCount;
  }
  throw new Error("the browser does not tell its loudspeaker's delay");
}

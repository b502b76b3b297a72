// Keeps the video in sync with the audio.
//
// Browsers synchronize both by themselves, but tolerate video that is up to 30 ms early. Audio is
// delayed by its jitter buffer and by the buffer of the loudspeaker: here the video gets the same
// delay.

const INTERVAL_MS = 500;
const PACKET_MS = 20; // of audio
const MIN_CHANGE_MS = 4;
const MAX_DELAY_MS = 400;

/** Adjusts the video delay of one peer connection until `stop` is called. */
export class LipSync {
  #pc;
  #timer;
  #last = null;
  #targetMs = 0;

  /** @param {RTCPeerConnection} pc */
  constructor(pc) {
    this.#pc = pc;
    this.#timer = setInterval(() => this.#adjust(), INTERVAL_MS);
  }

  stop() {
    clearInterval(this.#timer);
  }

  async #adjust() {
    const receiver = this.#pc.getReceivers().find(({ track }) => track.kind === "video");
    if (!receiver || !("jitterBufferTarget" in receiver)) return;
    const now = totals(await this.#pc.getStats());
    const before = this.#last;
    this.#last = now;
    const bufferMs = before && averageMs(now.buffer, before.buffer);
    const loudspeakerMs = before && averageMs(now.loudspeaker, before.loudspeaker);
    if (bufferMs === null || loudspeakerMs === null) return;
    // The average sample waits half a packet longer than its packet does.
    const targetMs = Math.min(MAX_DELAY_MS, Math.max(0, bufferMs + loudspeakerMs - PACKET_MS / 2));
    if (Math.abs(targetMs - this.#targetMs) < MIN_CHANGE_MS) return;
    this.#targetMs = receiver.jitterBufferTarget = Math.round(targetMs);
  }
}

/** Return `[total seconds, samples]` waited so far, in the jitter buffer and in the loudspeaker. */
function totals(report) {
  const sums = { buffer: [0, 0], loudspeaker: [0, 0] };
  for (const entry of report.values()) {
    if (entry.type === "inbound-rtp" && entry.kind === "audio") {
      sums.buffer = [entry.jitterBufferDelay ?? 0, entry.jitterBufferEmittedCount ?? 0];
    } else if (entry.type === "media-playout") {
      sums.loudspeaker = [entry.totalPlayoutDelay ?? 0, entry.totalSamplesCount ?? 0];
    }
  }
  return sums;
}

/** Return the average wait in ms between two reports, or null if no samples were played. */
function averageMs([sum, count], [sumBefore, countBefore]) {
  return count > countBefore ? (1000 * (sum - sumBefore)) / (count - countBefore) : null;
}

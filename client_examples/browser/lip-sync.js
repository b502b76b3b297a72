// Keeps the lips in step with the voice.
//
// Browsers line picture and sound up by themselves, but let the picture be up to 30 ms early before
// they act. The voice waits longer, in its own buffer and in the loudspeaker's: here the picture is
// made to wait as long.

const EVERY_MS = 500;
const PIECE_MS = 20; // a packet of sound
const STEP_MS = 4; // smaller changes are not worth one
const MOST_MS = 400;

/** Watches one peer connection until `stop`. */
export class LipSync {
  #pc;
  #timer;
  #last = null;
  #setMs = 0;

  /** @param {RTCPeerConnection} pc */
  constructor(pc) {
    this.#pc = pc;
    this.#timer = setInterval(() => this.#adjust(), EVERY_MS);
  }

  stop() {
    clearInterval(this.#timer);
  }

  async #adjust() {
    const receiver = this.#pc.getReceivers().find(({ track }) => track.kind === "video");
    if (!receiver || !("jitterBufferTarget" in receiver)) return;
    const now = totals(await this.#pc.getStats());
    const then = this.#last;
    this.#last = now;
    const buffer = then && average(now.buffer, then.buffer);
    const loudspeaker = then && average(now.loudspeaker, then.loudspeaker);
    if (buffer === null || loudspeaker === null) return;
    // A sample in the middle of a packet has waited half of it longer than the packet.
    const wantedMs = Math.min(MOST_MS, Math.max(0, buffer + loudspeaker - PIECE_MS / 2));
    if (Math.abs(wantedMs - this.#setMs) < STEP_MS) return;
    this.#setMs = receiver.jitterBufferTarget = Math.round(wantedMs);
  }
}

/** Sums and counts: how long samples have waited in the buffer, and in the loudspeaker. */
function totals(report) {
  const found = { buffer: [0, 0], loudspeaker: [0, 0] };
  for (const one of report.values()) {
    if (one.type === "inbound-rtp" && one.kind === "audio") {
      found.buffer = [one.jitterBufferDelay ?? 0, one.jitterBufferEmittedCount ?? 0];
    } else if (one.type === "media-playout") {
      found.loudspeaker = [one.totalPlayoutDelay ?? 0, one.totalSamplesCount ?? 0];
    }
  }
  return found;
}

/** The average since then, in milliseconds; null when nothing came. */
function average([sum, count], [sumThen, countThen]) {
  return count > countThen ? (1000 * (sum - sumThen)) / (count - countThen) : null;
}

// Statistics of a WebRTC connection, in one flat object.

const SMOOTH_MS = 4000; // quality is the worst of this time, so that it does not flicker

/** Computes rates and levels from successive `getStats()` reports of one peer connection. */
export class StatsReader {
  #pc;
  #last = null;
  #recent = [];

  constructor(pc) {
    this.#pc = pc;
  }

  /** Return current statistics. Rates are taken since the previous call; the first has none. */
  async read() {
    const report = select(await this.#pc.getStats());
    const now = totals(report);
    const before = this.#last ?? now;
    this.#last = now;
    const seconds = Math.max((now.atMs - before.atMs) / 1000, 1e-3);
    const packets = now.packets - before.packets;
    const lost = Math.max(0, now.lost - before.lost);
    const stats = {
      rttMs: ms(report.pair?.currentRoundTripTime),
      jitterMs: ms(report.video?.jitter),
      bufferMs: averageBufferMs(now, before),
      fps: Math.round(report.video?.framesPerSecond ?? (now.decoded - before.decoded) / seconds),
      kbps: Math.round(((now.bytes - before.bytes) * 8) / 1000 / seconds),
      lostPercent: packets + lost > 0 ? (100 * lost) / (packets + lost) : 0,
      framesDecoded: now.decoded,
      framesDropped: report.video?.framesDropped ?? 0,
      freezes: report.video?.freezeCount ?? 0,
      freezeMs: ms(report.video?.totalFreezesDuration) ?? 0,
      width: report.video?.frameWidth ?? 0,
      height: report.video?.frameHeight ?? 0,
      codec: report.codec?.mimeType?.replace("video/", "") ?? "",
      relayed: report.candidate?.candidateType === "relay",
      protocol: report.candidate?.relayProtocol ?? report.candidate?.protocol ?? "",
    };
    return { ...stats, quality: this.#quality(stats, now.atMs) };
  }

  // The worst score of the last seconds, 1 (bad) to 4 (good).
  #quality(stats, atMs) {
    this.#recent.push({ atMs, score: score(stats) });
    this.#recent = this.#recent.filter((entry) => atMs - entry.atMs <= SMOOTH_MS);
    return Math.min(...this.#recent.map((entry) => entry.score));
  }
}

const ms = (seconds) => (seconds === undefined ? null : Math.round(seconds * 1000));

const isSelectedPair = ({ type, nominated, state }) =>
  type === "candidate-pair" && nominated && state === "succeeded";

function select(report) {
  const all = [...report.values()];
  const inbound = (kind) => all.find((entry) => entry.type === "inbound-rtp" && entry.kind === kind);
  const video = inbound("video");
  const transport = all.find(({ type }) => type === "transport");
  const pair =
    report.get(transport?.selectedCandidatePairId) ??
    all.find(isSelectedPair);
  return {
    video,
    audio: inbound("audio"),
    pair,
    codec: report.get(video?.codecId),
    candidate: report.get(pair?.localCandidateId),
  };
}

function totals({ video, audio }) {
  return {
    atMs: performance.now(),
    bytes: (video?.bytesReceived ?? 0) + (audio?.bytesReceived ?? 0),
    packets: (video?.packetsReceived ?? 0) + (audio?.packetsReceived ?? 0),
    lost: (video?.packetsLost ?? 0) + (audio?.packetsLost ?? 0),
    decoded: video?.framesDecoded ?? 0,
    delayS: video?.jitterBufferDelay ?? 0,
    emitted: video?.jitterBufferEmittedCount ?? 0,
  };
}

// Return how long frames waited in the browser's jitter buffer, on average.
function averageBufferMs(now, before) {
  const count = now.emitted - before.emitted;
  return count > 0 ? Math.round(((now.delayS - before.delayS) / count) * 1000) : null;
}

function score({ rttMs, lostPercent, fps, framesDecoded }) {
  const missing = framesDecoded > 50 ? 25 - fps : 0; // the rate is low at the start
  if (rttMs > 800 || lostPercent > 10 || missing > 12) return 1;
  if (rttMs > 400 || lostPercent > 4 || missing > 7) return 2;
  if (rttMs > 200 || lostPercent > 1 || missing > 3) return 3;
  return 4;
}

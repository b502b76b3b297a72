// What the browser's WebRTC statistics say about a connection, in one flat object.

const SMOOTH_MS = 4000; // quality looks back this far, so that one late packet does not flicker

/** Turns successive `getStats()` reports of one peer connection into figures for people. */
export class StatsReader {
  #pc;
  #last = null;
  #recent = [];

  constructor(pc) {
    this.#pc = pc;
  }

  /** Read now. Rates are taken since the call before; the first call gives totals only. */
  async read() {
    const found = pick(await this.#pc.getStats());
    const now = totals(found);
    const then = this.#last ?? now;
    this.#last = now;
    const seconds = Math.max((now.atMs - then.atMs) / 1000, 1e-3);
    const packets = now.packets - then.packets;
    const lost = Math.max(0, now.lost - then.lost);
    const figures = {
      rttMs: ms(found.pair?.currentRoundTripTime),
      jitterMs: ms(found.video?.jitter),
      bufferMs: buffered(now, then),
      fps: Math.round(found.video?.framesPerSecond ?? (now.decoded - then.decoded) / seconds),
      kbps: Math.round(((now.bytes - then.bytes) * 8) / 1000 / seconds),
      lostPercent: packets + lost > 0 ? (100 * lost) / (packets + lost) : 0,
      framesDecoded: now.decoded,
      framesDropped: found.video?.framesDropped ?? 0,
      freezes: found.video?.freezeCount ?? 0,
      freezeMs: ms(found.video?.totalFreezesDuration) ?? 0,
      width: found.video?.frameWidth ?? 0,
      height: found.video?.frameHeight ?? 0,
      codec: found.codec?.mimeType?.replace("video/", "") ?? "",
      relayed: found.candidate?.candidateType === "relay",
      protocol: found.candidate?.relayProtocol ?? found.candidate?.protocol ?? "",
    };
    return { ...figures, quality: this.#quality(figures, now.atMs) };
  }

  // The worst of the last seconds, 1 (bad) to 4 (good).
  #quality(figures, atMs) {
    this.#recent.push({ atMs, score: score(figures) });
    this.#recent = this.#recent.filter((one) => atMs - one.atMs <= SMOOTH_MS);
    return Math.min(...this.#recent.map((one) => one.score));
  }
}

const ms = (seconds) => (seconds === undefined ? null : Math.round(seconds * 1000));

function pick(report) {
  const all = [...report.values()];
  const inbound = (kind) => all.find((one) => one.type === "inbound-rtp" && one.kind === kind);
  const video = inbound("video");
  const transport = all.find((one) => one.type === "transport");
  const pair =
    report.get(transport?.selectedCandidatePairId) ??
    all.find((one) => one.type === "candidate-pair" && one.nominated && one.state === "succeeded");
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

// How long a frame waited in the browser's own buffer, on average.
function buffered(now, then) {
  const count = now.emitted - then.emitted;
  return count > 0 ? Math.round(((now.delayS - then.delayS) / count) * 1000) : null;
}

function score({ rttMs, lostPercent, fps, framesDecoded }) {
  const behind = framesDecoded > 50 ? 25 - fps : 0; // at the start the rate still climbs
  if (rttMs > 800 || lostPercent > 10 || behind > 12) return 1;
  if (rttMs > 400 || lostPercent > 4 || behind > 7) return 2;
  if (rttMs > 200 || lostPercent > 1 || behind > 3) return 3;
  return 4;
}

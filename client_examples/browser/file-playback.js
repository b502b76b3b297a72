// Recordings: sound that is there already, sent as messages at the pace at which it is spoken.

import { LetsTalkError } from "./api.js";

const RATE = 16_000;
const PIECE_S = 0.25;
const AHEAD_S = 5; // what the server may hold; it takes 30 s, but an interrupt should cost little
const MAX_WAITING_BYTES = 128_000;

/**
 * Turn a source into PCM.
 *
 * @returns {Promise<{samples: Int16Array, rate: number}>}
 */
export async function toPcm(source, sampleRate = RATE) {
  if (source instanceof Int16Array) return { samples: source, rate: sampleRate };
  if (source instanceof Float32Array) return { samples: toInt16(source), rate: sampleRate };
  const bytes = source instanceof Blob ? await source.arrayBuffer() : source;
  // An offline context decodes and resamples without being started, hence without a click.
  const context = new OfflineAudioContext(1, 1, RATE);
  const isBuffer = source instanceof AudioBuffer;
  const buffer = isBuffer ? source : await decode(context, bytes);
  return { samples: toInt16(mixed(buffer)), rate: buffer.sampleRate };
}

async function decode(context, bytes) {
  try {
    return await context.decodeAudioData(bytes);
  } catch {
    const words = "This is not a sound file that the browser can read. Use WAV, MP3, OGG or M4A.";
    throw new LetsTalkError("bad-audio", words);
  }
}

function mixed(buffer) {
  const count = buffer.numberOfChannels;
  if (count === 1) return buffer.getChannelData(0);
  const sum = new Float32Array(buffer.length);
  for (let channel = 0; channel < count; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < sum.length; i++) sum[i] += samples[i] / count;
  }
  return sum;
}

function toInt16(samples) {
  const scale = (value) => Math.round(Math.max(-1, Math.min(1, value)) * 32_767);
  return Int16Array.from(samples, scale);
}

/** Sends one recording. `finished` resolves to true when all was sent, false when it was cut. */
export class Recording {
  #link;
  #samples;
  #rate;
  #sent = 0;
  #startMs = performance.now();
  #timer = 0;
  #resolve;

  constructor(link, { samples, rate }) {
    this.#link = link;
    this.#samples = samples;
    this.#rate = rate;
    this.seconds = samples.length / rate;
    this.finished = new Promise((resolve) => (this.#resolve = resolve));
    const audio = { format: "pcm16", sample_rate: rate, channels: 1 };
    link.send({ type: "session.configure", audio });
    this.#timer = setInterval(() => this.#pump(), (1000 * PIECE_S) / 2);
    this.#pump();
  }

  stop() {
    this.#end(false);
  }

  #pump() {
    if (!this.#link.isOpen) return this.#end(false);
    const dueS = (performance.now() - this.#startMs) / 1000 + AHEAD_S;
    const piece = Math.round(PIECE_S * this.#rate);
    while (this.#sent < Math.min(this.#samples.length, dueS * this.#rate)) {
      if (this.#link.waiting > MAX_WAITING_BYTES) return;
      this.#link.send(this.#samples.slice(this.#sent, this.#sent + piece));
      this.#sent += piece;
    }
    if (this.#sent < this.#samples.length) return;
    this.#link.send({ type: "segment.end" });
    this.#end(true);
  }

  #end(complete) {
    clearInterval(this.#timer);
    this.#resolve(complete);
  }
}

// Recorded audio: decodes a file to PCM and sends it as messages, a little faster than real time.

import { LetsTalkError } from "./api.js";

const SAMPLE_RATE = 16_000;
const CHUNK_S = 0.25;
const AHEAD_S = 5; // the server holds up to 30 s; less leaves less to drop at an interrupt
const MAX_BUFFERED_BYTES = 128_000;

/**
 * Convert any recording to mono PCM.
 *
 * @returns {Promise<{samples: Int16Array, sampleRate: number}>}
 */
export async function toPcm(source, sampleRate = SAMPLE_RATE) {
  if (source instanceof Int16Array) return { samples: source, sampleRate };
  if (source instanceof Float32Array) return { samples: toInt16(source), sampleRate };
  const buffer = source instanceof AudioBuffer ? source : await decode(source);
  return { samples: toInt16(mixToMono(buffer)), sampleRate: buffer.sampleRate };
}

async function decode(source) {
  const bytes = source instanceof Blob ? await source.arrayBuffer() : source;
  // An offline context decodes and resamples without being started, so no user gesture is needed.
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE);
  try {
    return await context.decodeAudioData(bytes);
  } catch {
    const message = "This browser cannot read the audio file. Use WAV, MP3, OGG or M4A.";
    throw new LetsTalkError("bad-audio", message);
  }
}

function mixToMono(buffer) {
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

/**
 * Sends one recording, at most `AHEAD_S` ahead of real time.
 *
 * `finished` resolves to true when everything was sent, to false when it was stopped before.
 */
export class RecordedAudio {
  #connection;
  #samples;
  #sampleRate;
  #sent = 0;
  #startMs = performance.now();
  #timer = 0;
  #resolve;

  constructor(connection, { samples, sampleRate }) {
    this.#connection = connection;
    this.#samples = samples;
    this.#sampleRate = sampleRate;
    this.finished = new Promise((resolve) => (this.#resolve = resolve));
    const audio = { format: "pcm16", sample_rate: sampleRate, channels: 1 };
    connection.send({ type: "session.configure", audio });
    this.#timer = setInterval(() => this.#sendDueChunks(), (1000 * CHUNK_S) / 2);
    this.#sendDueChunks();
  }

  stop() {
    this.#end(false);
  }

  #sendDueChunks() {
    if (!this.#connection.isOpen) return this.#end(false);
    const dueS = (performance.now() - this.#startMs) / 1000 + AHEAD_S;
    const size = Math.round(CHUNK_S * this.#sampleRate);
    while (this.#sent < Math.min(this.#samples.length, dueS * this.#sampleRate)) {
      if (this.#connection.bufferedBytes > MAX_BUFFERED_BYTES) return;
      this.#connection.send(this.#samples.slice(this.#sent, this.#sent + size));
      this.#sent += size;
    }
    if (this.#sent < this.#samples.length) return;
    this.#connection.send({ type: "segment.end" });
    this.#end(true);
  }

  #end(complete) {
    clearInterval(this.#timer);
    this.#resolve(complete);
  }
}

// The visitor's microphone: opened when asked, metered, muted, held by push-to-talk.

import { LetsTalkError } from "./api.js";
import { microphoneProblem } from "./error-messages.js";

const WANTED = {
  echoCancellation: true, // or the avatar would hear itself through the loudspeakers
  noiseSuppression: true,
  autoGainControl: true,
  channelCount: 1,
};
const FLOOR_DB = -60; // lower end of the meter
const VOICE_DB = -40; // as for the server
const VOICE = 10 ** (VOICE_DB / 20);
const DEAF_MS = 7000; // a microphone that gives nothing at all for so long is worth a word
const DEAF_DB = -75;
const PAUSE_MS = 700; // speech after such a pause counts as a new beginning

/**
 * Events: `change`, `level` [{level: 0..1}], `onset` [{atMs}] (speech begins after a pause),
 * `silent` (nothing comes in), `lost` (unplugged or taken away).
 */
export class Microphone extends EventTarget {
  #stream = null;
  #context = null;
  #muted = false;
  #quietSinceMs = 0;
  #deafSinceMs = 0;

  get stream() {
    return this.#stream;
  }

  get isOpen() {
    return this.#stream !== null;
  }

  get muted() {
    return this.#muted;
  }

  set muted(on) {
    this.#muted = on;
    for (const track of this.#stream?.getTracks() ?? []) track.enabled = !on;
    this.#deafSinceMs = performance.now();
    this.dispatchEvent(new Event("change"));
  }

  async open() {
    if (this.isOpen) return;
    if (!navigator.mediaDevices) throw new LetsTalkError("mic-insecure", "Not a secure page.");
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio: WANTED });
    } catch (error) {
      throw new LetsTalkError(microphoneProblem(error), error.message);
    }
    const [track] = this.#stream.getAudioTracks();
    track.enabled = !this.#muted;
    track.onended = () => {
      this.close();
      this.dispatchEvent(new Event("lost"));
    };
    this.#measure();
    this.dispatchEvent(new Event("change"));
  }

  close() {
    if (!this.isOpen) return;
    for (const track of this.#stream.getTracks()) {
      track.onended = null;
      track.stop();
    }
    this.#stream = null;
    this.#context.close();
    this.#tellLevel(0);
    this.dispatchEvent(new Event("change"));
  }

  #measure() {
    const context = (this.#context = new AudioContext());
    const analyser = new AnalyserNode(context, { fftSize: 1024 });
    context.createMediaStreamSource(this.#stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    // The first word after opening tells nothing about the delay: the path is still being set up.
    this.#deafSinceMs = this.#quietSinceMs = performance.now();
    let level = 0;
    const look = () => {
      if (context !== this.#context || context.state === "closed") return;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
      const db = 10 * Math.log10(power + 1e-9);
      this.#judge(db, samples);
      level = Math.max(Math.min(1, Math.max(0, 1 - db / FLOOR_DB)), level * 0.88);
      this.#tellLevel(level);
      requestAnimationFrame(look);
    };
    look();
  }

  #judge(db, samples) {
    const now = performance.now();
    if (db > VOICE_DB) {
      if (now - this.#quietSinceMs > PAUSE_MS) {
        const since = samples.length - samples.findIndex((sample) => Math.abs(sample) > VOICE);
        this.#tell("onset", { atMs: now - (1000 * since) / this.#context.sampleRate });
      }
      this.#quietSinceMs = now;
    }
    if (db > DEAF_DB || this.#muted) this.#deafSinceMs = now;
    if (now - this.#deafSinceMs < DEAF_MS) return;
    this.#deafSinceMs = Infinity; // once is enough
    this.dispatchEvent(new Event("silent"));
  }

  #tellLevel(level) {
    this.#tell("level", { level });
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

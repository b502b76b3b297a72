// The visitor's microphone: opening, level meter, mute, and what can go wrong.

import { closeDevice, openDevice } from "./device.js";
import { microphoneErrorCode } from "./error-messages.js";

const CONSTRAINTS = {
  echoCancellation: true, // or the avatar's own voice would come back through the loudspeakers
  noiseSuppression: true,
  autoGainControl: true,
  channelCount: 1,
};
const METER_MIN_DB = -60;
const VOICE_DB = -40; // the same threshold as in the server
const VOICE = 10 ** (VOICE_DB / 20);
const SILENT_DB = -75; // a working microphone is never as quiet as this ...
const SILENT_MS = 7000; // ... for so long
const PAUSE_MS = 700; // speech after a pause of this length is a new onset

/**
 * The microphone, closed until `open` is called.
 *
 * Events: `change`, `level` [{level: 0..1}], `onset` [{atMs}] (speech begins after a pause),
 * `silent` (it delivers no signal), `lost` (it was disconnected).
 */
export class Microphone extends EventTarget {
  #stream = null;
  #context = null;
  #muted = false;
  #lastVoiceMs = 0;
  #lastSignalMs = 0;

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
    this.#lastSignalMs = performance.now();
    this.dispatchEvent(new Event("change"));
  }

  async open() {
    if (this.isOpen) return;
    const onLost = () => {
      this.close();
      this.dispatchEvent(new Event("lost"));
    };
    const options = { insecure: "mic-insecure", codeOf: microphoneErrorCode, onLost };
    this.#stream = await openDevice({ audio: CONSTRAINTS }, options);
    this.#stream.getAudioTracks()[0].enabled = !this.#muted;
    this.#measure();
    this.dispatchEvent(new Event("change"));
  }

  close() {
    if (!this.isOpen) return;
    closeDevice(this.#stream);
    this.#stream = null;
    this.#context.close();
    this.#emitLevel(0);
    this.dispatchEvent(new Event("change"));
  }

  #measure() {
    const context = (this.#context = new AudioContext());
    const analyser = new AnalyserNode(context, { fftSize: 1024 });
    context.createMediaStreamSource(this.#stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    // No onset for the first words after opening: their delay is that of setting up the path.
    this.#lastSignalMs = this.#lastVoiceMs = performance.now();
    let level = 0;
    const update = () => {
      if (context !== this.#context || context.state === "closed") return;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
      const db = 10 * Math.log10(power + 1e-9);
      this.#detect(db, samples);
      level = Math.max(Math.min(1, Math.max(0, 1 - db / METER_MIN_DB)), level * 0.88);
      this.#emitLevel(level);
      requestAnimationFrame(update);
    };
    update();
  }

  #detect(db, samples) {
    const now = performance.now();
    if (db > VOICE_DB) {
      if (now - this.#lastVoiceMs > PAUSE_MS) {
        const samplesAgo = samples.length - samples.findIndex((sample) => Math.abs(sample) > VOICE);
        this.#emit("onset", { atMs: now - (1000 * samplesAgo) / this.#context.sampleRate });
      }
      this.#lastVoiceMs = now;
    }
    if (db > SILENT_DB || this.#muted) this.#lastSignalMs = now;
    if (now - this.#lastSignalMs < SILENT_MS) return;
    this.#lastSignalMs = Infinity; // report it once
    this.dispatchEvent(new Event("silent"));
  }

  #emitLevel(level) {
    this.#emit("level", { level });
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

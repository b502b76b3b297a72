// How good the connection is, and how long a word takes from the mouth to the avatar's lips.

const READ_MS = 1000;
const MAX_DELAY_MS = 4000; // a longer one was not the answer to that word
const KEPT = 5;

/** Writes the figures into the pill and the card at the head of the page. */
export class Readout {
  #avatar;
  #parts;
  #onsetMs = null; // of a word that the avatar has not begun to answer
  #delays = [];
  #bufferMs = 0;

  constructor(avatar, parts) {
    this.#avatar = avatar;
    this.#parts = parts;
    avatar.addEventListener("speaking", () => this.#measure());
    setInterval(() => document.hidden || this.#show(), READ_MS);
  }

  /** The visitor begins to speak; the avatar's next `speaking` event answers it. */
  spoken(atMs) {
    if (!this.#avatar.speaking) this.#onsetMs = atMs;
  }

  async #measure() {
    if (this.#onsetMs === null) return; // it goes on after a pause too short to count as one
    const passedMs = performance.now() - this.#onsetMs;
    this.#onsetMs = null;
    if (passedMs > MAX_DELAY_MS) return;
    // The event comes as the picture leaves the server; the picture waits in the browser's buffer.
    this.#noteBuffer(await this.#avatar.stats());
    this.#delays.push(passedMs + this.#bufferMs);
    this.#delays = this.#delays.slice(-KEPT);
  }

  /** Keep the wait in the browser's buffer: of too short a time it is not known. */
  #noteBuffer(figures) {
    this.#bufferMs = figures?.bufferMs ?? this.#bufferMs;
  }

  get #delayMs() {
    const sorted = this.#delays.toSorted((a, b) => a - b);
    return sorted.length ? Math.round(sorted[sorted.length >> 1]) : null;
  }

  async #show() {
    const figures = this.#avatar.state === "live" ? await this.#avatar.stats() : null;
    this.#noteBuffer(figures);
    const { bars, delay, list } = this.#parts;
    bars.dataset.quality = figures?.quality ?? 0;
    const delayMs = this.#delayMs;
    delay.hidden = !figures || delayMs === null; // no other figure in its place
    delay.textContent = `${delayMs} ms`;
    list.replaceChildren(...(figures ? rows(figures, delayMs, this.#avatar.serverStats) : []));
  }
}

const QUALITY = ["", "Poor", "Fair", "Good", "Very good"];

function rows(figures, delayMs, server) {
  const { width, height, codec, protocol, relayed } = figures;
  const pairs = [
    ["Quality", QUALITY[figures.quality]],
    ["Voice to lips", delayMs === null ? "speak to measure" : `${delayMs} ms`],
    ["Network round trip", figures.rttMs === null ? "–" : `${figures.rttMs} ms`],
    ["Playback buffer", figures.bufferMs === null ? "–" : `${figures.bufferMs} ms`],
    ["Lost packets", `${figures.lostPercent.toFixed(1)} %`],
    ["Picture", `${width} × ${height}, ${figures.fps} fps`],
    ["Codec", codec],
    ["Dropped, frozen", `${figures.framesDropped}, ${figures.freezes}`],
    ["Bit rate", `${figures.kbps} kbit/s`],
    ["Path", `${relayed ? "TURN relay" : "direct"}${protocol ? `, ${protocol.toUpperCase()}` : ""}`],
  ];
  const step = server?.stages_ms?.step;
  if (step) pairs.push(["Server, per step", `${Math.round(step.p50)} ms`]);
  return pairs.flatMap(([name, value]) => {
    const term = Object.assign(document.createElement("dt"), { textContent: name });
    const text = Object.assign(document.createElement("dd"), { textContent: value });
    return [term, text];
  });
}

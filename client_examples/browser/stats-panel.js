// The connection panel: quality, and the delay from the visitor's voice to the avatar's lips.

const UPDATE_MS = 1000;
const MAX_DELAY_MS = 4000; // a later `speaking` event does not belong to that onset
const DELAYS = 5; // the median of this many is shown

/**
 * Writes statistics into the button and the popover at the top of the page.
 *
 * Event: `change`, when `voiceMs` or `textMs` may have changed.
 */
export class StatsPanel extends EventTarget {
  #avatar;
  #elements;
  #onsetMs = null; // of speech that the avatar has not begun to say
  #delays = [];
  #bufferMs = 0;
  #rttMs = 0;
  #textAtMs = null; // of a text that the avatar has not begun to say

  /** From the last text to the first frame that says it; null while something else is said. */
  textMs = null;

  /**
   * @param {LetsTalkAvatar} avatar
   * @param {{bars: Element, delay: Element, list: Element}} elements
   */
  constructor(avatar, elements) {
    super();
    this.#avatar = avatar;
    this.#elements = elements;
    avatar.addEventListener("speaking", () => this.#onSpeaking());
    setInterval(() => document.hidden || this.update(), UPDATE_MS);
  }

  /** Note that the visitor began to speak; the avatar's next `speaking` event ends the delay. */
  onSpeechStart(atMs) {
    if (!this.#avatar.speaking) this.#onsetMs = atMs;
  }

  /** Note that a text was sent, which the avatar's next `speaking` event says. */
  onText(atMs) {
    if (!this.#avatar.speaking) this.#textAtMs = atMs;
  }

  /**
   * From the visitor's voice to the avatar's lips: as measured, else what the server, the network
   * and the playback buffer take by their own account; null if that is unknown, too.
   */
  get voiceMs() {
    const liveMs = this.#avatar.serverStats?.stages_ms?.live?.p50;
    const told = liveMs === undefined ? null : Math.round(liveMs + this.#rttMs + this.#bufferMs);
    return this.#delayMs ?? told;
  }

  async #onSpeaking() {
    const nowMs = performance.now();
    const [onsetMs, textAtMs] = [this.#onsetMs, this.#textAtMs];
    this.#onsetMs = this.#textAtMs = this.textMs = null;
    // The event is sent with the frame, but the frame also waits in the browser's jitter buffer.
    this.#updateBuffer(await this.#avatar.stats());
    if (textAtMs !== null) this.textMs = Math.round(nowMs - textAtMs + this.#bufferMs);
    else if (onsetMs !== null) this.#addDelay(nowMs - onsetMs);
    this.dispatchEvent(new Event("change"));
  }

  #addDelay(elapsedMs) {
    if (elapsedMs > MAX_DELAY_MS) return;
    this.#delays.push(elapsedMs + this.#bufferMs);
    this.#delays = this.#delays.slice(-DELAYS);
  }

  // Keeps the last known value: two readings in quick succession have none.
  #updateBuffer(stats) {
    this.#bufferMs = stats?.bufferMs ?? this.#bufferMs;
    this.#rttMs = stats?.rttMs ?? this.#rttMs;
  }

  get #delayMs() {
    const sorted = this.#delays.toSorted((a, b) => a - b);
    return sorted.length ? Math.round(sorted[sorted.length >> 1]) : null;
  }

  /** Read the statistics and show them. */
  async update() {
    const stats = this.#avatar.state === "live" ? await this.#avatar.stats() : null;
    this.#updateBuffer(stats);
    const { bars, delay, list } = this.#elements;
    bars.dataset.quality = stats?.quality ?? 0;
    const delayMs = this.#delayMs;
    delay.hidden = !stats || delayMs === null;
    delay.textContent = `${delayMs} ms`;
    list.replaceChildren(...(stats ? rows(stats, delayMs, this.#avatar.serverStats) : []));
    this.dispatchEvent(new Event("change"));
  }
}

const QUALITY = ["", "Poor", "Fair", "Good", "Very good"];

function rows(stats, delayMs, server) {
  const { width, height, codec, protocol, relayed } = stats;
  const pairs = [
    ["Quality", QUALITY[stats.quality]],
    ["Voice to lips", delayMs === null ? "speak to measure" : `${delayMs} ms`],
    ["Network round trip", stats.rttMs === null ? "–" : `${stats.rttMs} ms`],
    ["Playback buffer", stats.bufferMs === null ? "–" : `${stats.bufferMs} ms`],
    ["Lost packets", `${stats.lostPercent.toFixed(1)} %`],
    ["Video", `${width} × ${height}, ${stats.fps} fps`],
    ["Codec", codec],
    ["Drops, freezes", `${stats.framesDropped}, ${stats.freezes}`],
    ["Bit rate", `${stats.kbps} kbit/s`],
    ["Path", `${relayed ? "TURN relay" : "direct"}${protocol ? `, ${protocol.toUpperCase()}` : ""}`],
  ];
  const step = server?.stages_ms?.step;
  if (step) pairs.push(["Model, per step", `${Math.round(step.p50)} ms`]);
  if (server?.quality_level) pairs.push(["Server is busy", `quality lowered by ${server.quality_level}`]);
  return pairs.flatMap(([name, value]) => {
    const term = Object.assign(document.createElement("dt"), { textContent: name });
    const text = Object.assign(document.createElement("dd"), { textContent: value });
    return [term, text];
  });
}

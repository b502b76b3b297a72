// A talking avatar in a <video> element: the module that other pages embed.
//
//   import { LetsTalkAvatar } from "https://avatar.example/letstalk.js";
//   const avatar = new LetsTalkAvatar(video, { url: "https://avatar.example/", token });
//   await avatar.connect();
//   await avatar.speak(await navigator.mediaDevices.getUserMedia({ audio: true }));
//
// docs/embedding.md has the rest; docs/protocol.md says what goes over the wire.

import { Api, LetsTalkError } from "./api.js";
import { Link } from "./peer-connection.js";
import { Recording, toPcm } from "./file-playback.js";

export { LetsTalkError };

const RETRIES_MS = [300, 1000, 2000, 4000, 8000];
const INTERRUPT_MS = 3000;
const STATS_S = 2;

/**
 * One avatar, shown in one video element.
 *
 * Events (`detail` in brackets): `state` [{state, error}], `speaking`, `idle`,
 * `interrupted` [{playedMs, droppedMs}], `finished` [{segment, playedMs}],
 * `selected` [{avatar, warnings}], `warning` [{code, message}], `overlay` [its settings],
 * `blocked` (the browser wants a click before it plays sound), `message` [the server's message].
 *
 * `state` is one of `new`, `connecting`, `live`, `reconnecting`, `failed`, `closed`.
 */
export class LetsTalkAvatar extends EventTarget {
  #video;
  #options;
  #choice;
  #link = null;
  #attempts = 0; // counts up with every attempt, so that an old one knows it is
  #tries = 0;
  #timer = 0;
  #track = null;
  #recording = null;
  #muted = false;

  state = "new";
  error = null;
  speaking = false;
  /** The session as the server describes it, or null; `session.session` is its id. */
  session = null;
  /** The server's own figures (`session.stats`), or null. */
  serverStats = null;

  /**
   * @param {HTMLVideoElement} video shows the avatar and plays its voice.
   * @param {object} [options]
   * @param {string} [options.url] address of the server; by default where this module came from.
   * @param {string|function} [options.token] a token, or a function (may be async) that gets one.
   * @param {string} [options.avatar] id of the avatar; by default the server's first.
   * @param {string} [options.session] id of a session to join or resume.
   * @param {boolean} [options.badge] false hides the "AI avatar" badge, where the server lets it.
   * @param {boolean} [options.watch] only show the session, and let another page speak.
   * @param {boolean|"always"} [options.reconnect] come back by itself after a lost connection;
   *   "always" never gives up, for pages that nobody looks after.
   */
  constructor(video, options = {}) {
    super();
    this.#video = video;
    this.#options = { reconnect: true, ...options };
    this.#choice = options.avatar ?? null;
    this.api = new Api(options.url, options.token);
    if (options.session) this.session = { session: options.session };
    video.playsInline = true;
    video.autoplay = true;
  }

  /** Begin, or begin again after a failure. Resolves when the picture is live. */
  async connect() {
    this.#tries = 0;
    await this.#attempt("connecting");
    while (this.state === "reconnecting" || this.state === "connecting") await this.#change();
    if (this.state !== "live") throw this.error ?? new LetsTalkError("closed", "It was closed.");
  }

  #change() {
    return new Promise((done) => this.addEventListener("state", done, { once: true }));
  }

  /** Let go of the connection; with `end` of the session too. The last picture stays. */
  close({ end = true } = {}) {
    this.#attempts++;
    clearTimeout(this.#timer);
    this.#recording?.stop();
    if (end && this.session) this.#endSession();
    this.#link?.close();
    this.#link = null;
    this.api.close();
    this.#enter("closed");
  }

  /**
   * Say something: a `MediaStream` (a microphone, on air until `hush`), or a recording: PCM as
   * `Float32Array` or `Int16Array`, an `AudioBuffer`, or a file as `Blob` or `ArrayBuffer`.
   *
   * @returns {Promise<boolean>} of a recording: true when it was sent, false if it was cut short.
   */
  async speak(source, { sampleRate } = {}) {
    if (source instanceof MediaStream) return this.#setTrack(source.getAudioTracks()[0] ?? null);
    const pcm = await toPcm(source, sampleRate);
    if (this.state !== "live") throw new LetsTalkError("not-live", "The avatar is not connected.");
    this.#recording?.stop();
    this.#recording = new Recording(this.#link, pcm);
    return this.#recording.finished;
  }

  /** Take the microphone off air and stop a recording; what was said is still shown. */
  async hush() {
    this.#recording?.stop();
    await this.#setTrack(null);
  }

  /** Cut the avatar short. Resolves to `{playedMs, droppedMs}`, or null without an answer. */
  interrupt() {
    this.#recording?.stop();
    return new Promise((resolve) => {
      const answered = ({ detail }) => finish(detail);
      const timer = setTimeout(() => finish(null), this.#link ? INTERRUPT_MS : 0);
      const finish = (detail) => {
        clearTimeout(timer);
        this.removeEventListener("interrupted", answered);
        resolve(detail);
      };
      this.addEventListener("interrupted", answered);
      this.send({ type: "avatar.interrupt" });
    });
  }

  /** Show another avatar. The connection and the voice go on. */
  select(avatar) {
    this.#choice = avatar;
    this.send({ type: "avatar.select", avatar });
  }

  /** Silence the microphone without taking it off air. */
  get muted() {
    return this.#muted;
  }

  set muted(on) {
    this.#muted = on;
    if (this.#track) this.#track.enabled = !on;
  }

  /** Figures about the connection (see stats.js), or null without one. */
  async stats() {
    return this.#link?.stats() ?? null;
  }

  /** Ask for the session again: its tokens are then fresh ones. */
  async refresh() {
    const id = this.session?.session;
    if (id) this.session = await this.api.request(`v1/sessions/${id}`);
  }

  /** Send a message of the protocol that has no method here. */
  send(message) {
    this.#link?.send(message);
  }

  // ---- Life of the connection ----------------------------------------------------------------

  async #attempt(state) {
    const attempt = ++this.#attempts;
    const isOld = () => attempt !== this.#attempts;
    clearTimeout(this.#timer);
    this.#link?.close();
    this.#setSpeaking(false);
    this.#enter(state);
    let link = null;
    try {
      const asked = this.#choice;
      const session = await this.#openSession();
      if (isOld()) return;
      this.session = session;
      link = this.#link = new Link(
        this.api,
        session,
        {
          watch: Boolean(this.#options.watch),
          onMessage: (message) => isOld() || this.#hear(message),
          onLost: (error) => isOld() || this.#lost(error),
        },
      );
      await link.open();
      if (isOld()) return link.close();
      await link.sender.replaceTrack(this.#track);
      this.#video.srcObject = link.stream;
      const [ready] = await Promise.all([link.ready, this.#play()]);
      if (isOld()) return link.close();
      link.send({ type: "session.configure", stats_s: STATS_S });
      const shown = ready.avatar ?? asked;
      if (this.#choice && this.#choice !== shown) this.select(this.#choice);
    } catch (error) {
      link?.close();
      if (!isOld()) this.#lost(error);
      return;
    }
    this.#tries = 0;
    this.#enter("live");
  }

  /** Resume the session if there is one, else make one. */
  async #openSession() {
    const id = this.session?.session;
    if (id && this.#options.watch) {
      const path = `v1/whep?session=${id}`;
      return { ...this.session, ice_servers: await this.api.iceServers(path) };
    }
    if (id) {
      try {
        return await this.api.request(`v1/sessions/${id}`);
      } catch (error) {
        if (!GONE.has(error.code)) throw error;
      }
    }
    const { badge } = this.#options;
    const options = badge === undefined ? {} : { options: { badge } };
    return this.api.post("v1/sessions", { ...this.#avatarField(), ...options });
  }

  #avatarField() {
    return this.#choice ? { avatar: this.#choice } : {};
  }

  #endSession() {
    const { session } = this.session;
    this.session = null;
    if (this.#options.watch) return; // it is another page's
    // keepalive: also while the page is being left
    this.api
      .request(`v1/sessions/${session}`, { method: "DELETE", keepalive: true })
      .catch(() => {});
  }

  #lost(error) {
    this.#attempts++;
    this.#link?.close();
    this.#link = null;
    this.#setSpeaking(false);
    if (ENDED.has(error.code) && !this.#options.session) this.session = null;
    if (!this.#comesBack(error)) return this.#enter("failed", error);
    const pauseMs = RETRIES_MS[this.#tries++] ?? RETRIES_MS.at(-1);
    const waitMs = Math.max(pauseMs, 1000 * (error.afterS ?? 0));
    this.#enter("reconnecting", error);
    this.#timer = setTimeout(() => this.#attempt("reconnecting"), waitMs);
  }

  #comesBack(error) {
    const { reconnect } = this.#options;
    if (reconnect === "always") return true;
    return reconnect && error.retry === true && this.#tries < RETRIES_MS.length;
  }

  #enter(state, error = null) {
    if (state === this.state && !error) return;
    this.error = error;
    this.state = state;
    this.#tell("state", { state, error });
  }

  #hear(message) {
    this.#tell("message", message);
    HEARD[message.type]?.(message, {
      tell: (type, detail) => this.#tell(type, detail),
      speaking: (on) => this.#setSpeaking(on),
      stats: (figures) => (this.serverStats = figures),
      lost: (error) => this.#lost(error),
    });
  }

  #setSpeaking(on) {
    if (on === this.speaking) return;
    this.speaking = on;
    this.#tell(on ? "speaking" : "idle");
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  async #play() {
    try {
      await this.#video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError" || this.#video.muted) return;
      this.#video.muted = true; // the picture comes first; sound waits for a click
      this.#tell("blocked");
      await this.#video.play().catch(() => {});
    }
  }

  async #setTrack(track) {
    this.#track = track;
    if (track) track.enabled = !this.#muted;
    await this.#link?.sender.replaceTrack(track);
  }
}

// Codes after which a session that was there is not.
const GONE = new Set(["unknown-session", "not-found", "not-allowed"]);
const ENDED = new Set(["session-over", "idle", "engine-failed", "ended"]);
const RESTARTING = new Set(["stopping", "not-ready"]);
// Why a session ended, as codes of ours; `lost` and `closed` are this side's doing.
const REASONS = {
  deleted: "ended",
  idle: "idle",
  failed: "engine-failed",
  "time-over": "session-over",
  stopping: "stopping",
};

const HEARD = {
  "avatar.speaking": (_, { speaking }) => speaking(true),
  "avatar.idle": (_, { speaking }) => speaking(false),
  "avatar.interrupted": ({ played_ms, dropped_ms }, { tell, speaking }) => {
    tell("interrupted", { playedMs: played_ms, droppedMs: dropped_ms });
    speaking(false);
  },
  "avatar.selected": ({ avatar, warnings }, { tell }) =>
    tell("selected", { avatar, warnings: warnings ?? [] }),
  "segment.finished": ({ segment_id, played_ms }, { tell }) =>
    tell("finished", { segment: segment_id, playedMs: played_ms }),
  "overlay.updated": ({ overlay }, { tell }) => tell("overlay", overlay),
  "session.ready": ({ overlay, warnings }, { tell }) => {
    tell("overlay", overlay ?? {});
    if (warnings?.length) tell("selected", { warnings });
  },
  "session.stats": (message, { stats }) => stats(message),
  "session.warning": ({ code, detail }, { tell }) => tell("warning", { code, message: detail }),
  "session.ended": ({ reason }, { lost }) => {
    const code = REASONS[reason];
    const words = "The session has ended.";
    if (code) lost(new LetsTalkError(code, words, { retry: code === "stopping" }));
  },
  "session.error": ({ code, detail, fatal }, { tell, lost }) => {
    if (!fatal) return tell("warning", { code, message: detail });
    lost(new LetsTalkError(code, detail, { retry: RESTARTING.has(code) }));
  },
};

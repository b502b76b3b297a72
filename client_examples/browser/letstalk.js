// A talking avatar in a <video> element: the module that other pages embed.
//
//   import { LetsTalkAvatar } from "https://avatar.example/letstalk.js";
//   const avatar = new LetsTalkAvatar(video, { url: "https://avatar.example/", token });
//   await avatar.connect();
//   await avatar.speak(await navigator.mediaDevices.getUserMedia({ audio: true }));
//
// docs/embedding.md documents the module, docs/protocol.md the messages.

import { Api, LetsTalkError } from "./api.js";
import { PeerConnection } from "./peer-connection.js";
import { PlaceQueue } from "./place-queue.js";
import { RecordedAudio, toPcm } from "./recorded-audio.js";

export { LetsTalkError };

const RETRY_DELAYS_MS = [300, 1000, 2000, 4000, 8000];
const INTERRUPT_TIMEOUT_MS = 3000;
const STATS_S = 2;
const MAX_TEXT_CHARS = 20_000; // more than any server accepts; larger messages would be lost

/**
 * An avatar that is shown in a video element.
 *
 * Events (`detail` in brackets): `state` [{state, error}], `speaking`, `idle`,
 * `interrupted` [{playedMs, droppedMs}], `finished` [{segment, playedMs}],
 * `selected` [{avatar, warnings}], `forgotten` [{avatar}: the server no longer has it], `warning` [{code, message}], `overlay` [settings],
 * `camera` [{status}: what the camera sees, `face`, `learning`, `no-face` or `several-faces`],
 * `performance` [{mood or style, strength, listening}: how the avatar feels and listens now],
 * `caption` [{speaker, text, final}] and `conversation` [{state}] of a conversation,
 * `queue` [{position, places, taken, own}: the server is full, see `POST /v1/queue`],
 * `blocked` (the browser plays no audio before a click), `message` [the server's message].
 *
 * `state` is one of `new`, `connecting`, `waiting` (for a place), `live`, `reconnecting`, `failed`,
 * `closed`.
 */
export class LetsTalkAvatar extends EventTarget {
  #video;
  #options;
  #avatarId;
  #connection = null;
  #attempt = 0; // number of the current connection attempt; older attempts stop when it changes
  #retries = 0; // since the video was last live
  #timer = 0;
  #track = null;
  #recording = null;
  #muted = false;
  #cameraTrack = null;
  #cameraOptions = {};
  #motion = null;
  #places;

  state = "new";
  error = null;
  speaking = false;
  /** The session as the server describes it, or null; `session.session` is its id. */
  session = null;
  /** How the avatar feels and listens, {mood or style, strength, listening}, or null. */
  performance = null;
  /** The server's latest `session.stats` message, or null. */
  serverStats = null;

  /**
   * @param {HTMLVideoElement} video shows the avatar and plays its audio.
   * @param {object} [options]
   * @param {string} [options.url] URL of the server; by default where this module was loaded from.
   * @param {string|function} [options.token] a token, or a function (may be async) returning one.
   * @param {string} [options.avatar] id of the avatar; by default the server's first.
   * @param {string} [options.session] id of a session to join or resume.
   * @param {boolean} [options.badge] false hides the "AI avatar" badge, where the server allows it.
   * @param {boolean} [options.camera] let `move` send a camera; false by default.
   * @param {boolean} [options.watch] only show the session, while another page speaks.
   * @param {boolean|"always"} [options.reconnect] reconnect after a lost connection;
   *   "always" never gives up, for pages that run unattended. With it, a full server is waited for.
   * @param {function} [options.known] returns ids of sessions that this browser opened, at most 8:
   *   the server tells which of them hold its places.
   */
  constructor(video, options = {}) {
    super();
    this.#video = video;
    this.#options = { reconnect: true, ...options };
    this.#avatarId = options.avatar ?? null;
    this.api = new Api(options.url, options.token);
    if (options.session) this.session = { session: options.session };
    this.api.session = options.session ?? null;
    this.#places = new PlaceQueue(this.api, options.known ?? (() => []), (standing, error) => {
      this.#retries = 0;
      if (this.state !== "waiting") this.#setState("waiting", error);
      this.#emit("queue", standing);
    });
    video.playsInline = true;
    video.autoplay = true;
  }

  /** Connect, also again after a failure. Resolves when the video is live. */
  async connect() {
    this.#retries = 0;
    this.api.open();
    await this.#open("connecting");
    while (UNDECIDED.has(this.state)) await this.#stateChange();
    if (this.state === "live") return;
    throw this.error ?? new LetsTalkError("closed", "The connection was closed.");
  }

  /** How the face moves, at once and in sessions to come: `motion` of `POST /v1/sessions`, or null. */
  get motion() {
    return this.#motion;
  }

  set motion(motion) {
    this.#motion = motion;
    if (this.state === "live") this.send({ type: "motion.configure", ...motion });
  }

  /** Go on with another session of one's own; a page that speaks in it loses it. */
  takeOver(session, avatar) {
    this.session = { session };
    this.#avatarId = avatar;
    return this.connect();
  }

  #stateChange() {
    return new Promise((done) => this.addEventListener("state", done, { once: true }));
  }

  /** Close the connection and, with `end`, the session. The last frame stays visible. */
  close({ end = true } = {}) {
    this.#attempt++;
    clearTimeout(this.#timer);
    this.#recording?.stop();
    if (end && this.session) this.#endSession();
    this.#connection?.close();
    this.#connection = null;
    this.api.close();
    this.#setState("closed");
  }

  /**
   * Speak a `MediaStream` (a microphone, until `hush` is called) or a recording: PCM as
   * `Float32Array` or `Int16Array`, an `AudioBuffer`, or a file as `Blob` or `ArrayBuffer`.
   *
   * @returns {Promise<boolean>} for a recording: true when it was sent, false if it was stopped.
   */
  async speak(source, { sampleRate } = {}) {
    if (source instanceof MediaStream) return this.#setTrack(source.getAudioTracks()[0] ?? null);
    const pcm = await toPcm(source, sampleRate);
    if (this.state !== "live") throw new LetsTalkError("not-live", "The avatar is not connected.");
    this.#recording?.stop();
    this.#recording = new RecordedAudio(this.#connection, pcm);
    return this.#recording.finished;
  }

  /** Stop sending the microphone and stop a recording. Speech already sent is still played. */
  async hush() {
    this.#recording?.stop();
    await this.#setTrack(null);
  }

  /**
   * Move the avatar with the face in the video of a `MediaStream`, until it is called with null.
   * The server reads how the face moves and keeps no frame. Needs the option `camera`.
   *
   * @param {MediaStream|null} stream
   * @param {object} [options]
   * @param {"sound"|"camera"|"blend"} [options.lips] what moves the lips.
   * @param {boolean} [options.absolute] turn the head as the visitor's is turned to the camera,
   *   not by how it moves from the neutral look.
   * @param {"drive"|"watch"} [options.role] `watch`: the avatar moves by itself, and answers a smile
   *   with a smile and a nod with a nod.
   */
  async move(stream, options = {}) {
    if (stream && !this.#options.camera) {
      throw new LetsTalkError("camera-off", "Set the option `camera` of LetsTalkAvatar.");
    }
    this.#cameraTrack = stream?.getVideoTracks()[0] ?? null;
    this.#cameraOptions = options;
    await this.#sendCamera();
  }

  /** Take the visitor's look of this moment as neutral: the avatar shows it as rest. */
  takeNeutral() {
    this.send({ type: "camera.neutral" });
  }

  /**
   * Let the avatar speak a text with the server's voice. A text that cannot be spoken is reported
   * by a `warning` with the code `bad-text`, `no-speech-engine` or `speech-failed`.
   *
   * @param {string} text
   * @param {object} [options]
   * @param {string} [options.voice] one of `speech.voices` of the server's configuration.
   */
  say(text, { voice } = {}) {
    if (this.state !== "live") throw new LetsTalkError("not-live", "The avatar is not connected.");
    const spoken = String(text).slice(0, MAX_TEXT_CHARS);
    this.send({ type: "speech.say", text: spoken, ...(voice && { voice }) });
  }

  /**
   * Change how the avatar feels, also while it speaks. A session that has to be opened again begins
   * with it.
   *
   * @param {string|object} mood one of `performance.moods` of the server's configuration, or numbers
   *   of a style, each from -3 to 3: `{smile, brows, head_energy, brow_energy, opening, blink_rate}`.
   * @param {number} [strength] how much of it is shown, from 0 to 1.
   */
  setMood(mood, strength = 1) {
    const chosen = typeof mood === "string" ? { mood } : { style: mood };
    this.#keep({ ...chosen, strength });
    this.send({ type: "performance.mood", ...chosen, strength });
  }

  /**
   * Make a gesture.
   *
   * @param {string} gesture one of `performance.gestures` of the server's configuration.
   * @param {object} [options]
   * @param {number} [options.amount] how large it is, from 0.1 to 2.
   * @param {number} [options.atMs] when, in the audio of the segment that is being sent; otherwise
   *   at once.
   */
  gesture(gesture, { amount, atMs } = {}) {
    const at = atMs === undefined ? {} : { at_ms: atMs };
    this.send({ type: "performance.gesture", gesture, ...(amount !== undefined && { amount }), ...at });
  }

  /** Change how the avatar listens in a conversation: `off`, `calm` or `attentive`. */
  setListening(mode) {
    this.#keep({ listening: mode });
    this.send({ type: "performance.listening", mode });
  }

  #keep(changes) {
    const { mood, style, ...others } = this.performance ?? {};
    const felt = changes.mood || changes.style ? {} : { mood, style };
    this.performance = { ...felt, ...others, ...changes };
  }

  /**
   * Begin, change or end a conversation, where the server has a chat model: microphone and `tell`
   * are then answered by it, instead of moving the avatar's lips.
   *
   * @param {object} [options]
   * @param {boolean} [options.on]
   * @param {string} [options.prompt] who the avatar is, if the operator has not fixed it.
   * @param {string} [options.voice] one of `conversation.voices` of the server's configuration.
   */
  converse(options = {}) {
    this.send({ type: "conversation.configure", ...options });
  }

  /** Say a text to the avatar in a conversation. */
  tell(text) {
    if (this.state !== "live") throw new LetsTalkError("not-live", "The avatar is not connected.");
    this.send({ type: "conversation.say", text: String(text).slice(0, MAX_TEXT_CHARS) });
  }

  /** Interrupt the avatar. Resolves to `{playedMs, droppedMs}`, or to null after a timeout. */
  interrupt() {
    this.#recording?.stop();
    return new Promise((resolve) => {
      const onInterrupted = ({ detail }) => finish(detail);
      const timer = setTimeout(() => finish(null), this.#connection ? INTERRUPT_TIMEOUT_MS : 0);
      const finish = (detail) => {
        clearTimeout(timer);
        this.removeEventListener("interrupted", onInterrupted);
        resolve(detail);
      };
      this.addEventListener("interrupted", onInterrupted);
      this.send({ type: "avatar.interrupt" });
    });
  }

  /** Show another avatar on the same connection. */
  select(avatar) {
    this.#avatarId = avatar;
    this.send({ type: "avatar.select", avatar });
  }

  /** Whether the microphone is muted. The track stays in place. */
  get muted() {
    return this.#muted;
  }

  set muted(on) {
    this.#muted = on;
    if (this.#track) this.#track.enabled = !on;
  }

  /** Return statistics of the connection (see stats-reader.js), or null without one. */
  async stats() {
    return this.#connection?.stats() ?? null;
  }

  /** Fetch the session again, with new tokens. */
  async refresh() {
    const id = this.session?.session;
    if (id) this.session = await this.api.request(`v1/sessions/${id}`);
  }

  /** Send a message of the protocol that has no method here. */
  send(message) {
    this.#connection?.send(message);
  }

  // ---- Connecting and reconnecting -----------------------------------------------------------

  async #open(state) {
    const attempt = ++this.#attempt;
    const isStale = () => attempt !== this.#attempt;
    clearTimeout(this.#timer);
    this.#connection?.close();
    this.#setSpeaking(false);
    this.#setState(state);
    let connection = null;
    try {
      const requested = this.#avatarId;
      const session = await this.#openSession(isStale);
      if (isStale()) return;
      if (this.state === "waiting") this.#setState("connecting");
      this.session = session;
      this.api.session = session.session;
      connection = this.#connection = new PeerConnection(
        this.api,
        session,
        {
          watch: Boolean(this.#options.watch),
          camera: Boolean(this.#options.camera),
          onMessage: (message) => isStale() || this.#onMessage(message),
          onLost: (error) => isStale() || this.#onLost(error),
        },
      );
      await connection.open();
      if (isStale()) return connection.close();
      await connection.sender.replaceTrack(this.#track);
      this.#video.srcObject = connection.stream;
      const [ready] = await Promise.all([connection.ready, this.#playVideo()]);
      if (isStale()) return connection.close();
      connection.send({ type: "session.configure", stats_s: STATS_S });
      if (this.#cameraTrack) await this.#sendCamera();
      const shown = ready.avatar ?? requested;
      if (this.#avatarId && this.#avatarId !== shown) this.select(this.#avatarId);
    } catch (error) {
      connection?.close();
      if (!isStale()) this.#onLost(error);
      return;
    }
    this.#retries = 0;
    this.#setState("live");
  }

  /** Resume the session if there is one, else create one. */
  async #openSession(isStale) {
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
    try {
      return await this.#createSession(isStale);
    } catch (error) {
      if (!AVATAR_GONE.has(error.code) || !this.#avatarId) throw error;
    }
    // An upload is on one server; when that is lost, another one shows its first avatar.
    this.#emit("forgotten", { avatar: this.#avatarId });
    this.#avatarId = null;
    return this.#createSession(isStale);
  }

  #createSession(isStale) {
    const { badge, reconnect } = this.#options;
    const options = {
      ...(badge === undefined ? {} : { badge }),
      ...(this.motion && { motion: this.motion }),
      ...performanceOptions(this.performance ?? undefined),
    };
    const body = { ...this.#avatarField(), options };
    return reconnect ? this.#places.open(body, isStale) : this.api.post("v1/sessions", body);
  }

  #avatarField() {
    return this.#avatarId ? { avatar: this.#avatarId } : {};
  }

  #endSession() {
    const { session } = this.session;
    this.session = null;
    if (this.#options.watch) return; // the session belongs to another page
    // keepalive: the request is sent even while the page is unloading
    this.api
      .request(`v1/sessions/${session}`, { method: "DELETE", keepalive: true })
      .catch(() => {});
  }

  #onLost(error) {
    this.#attempt++;
    this.#connection?.close();
    this.#connection = null;
    this.#setSpeaking(false);
    // A refused request has `afterS`; without it, the server has ended the session.
    const isOver = ENDED.has(error.code) || (RESTARTING.has(error.code) && !error.afterS);
    if (isOver && !this.#options.session) this.session = null;
    if (!this.#shouldReconnect(error)) return this.#setState("failed", error);
    // Another server of the cluster may take over at once from one that stops, or was lost.
    const isLeft = RESTARTING.has(error.code) || error.code === "session-gone";
    const isMoving = isLeft && this.#retries === 0;
    const retryMs = RETRY_DELAYS_MS[this.#retries++] ?? RETRY_DELAYS_MS.at(-1);
    const delayMs = isMoving ? 0 : retryMs;
    const waitMs = Math.max(delayMs, 1000 * (error.afterS ?? 0));
    this.#setState("reconnecting", error);
    this.#timer = setTimeout(() => this.#open("reconnecting"), waitMs);
  }

  #shouldReconnect(error) {
    const { reconnect } = this.#options;
    if (reconnect === "always") return true;
    return reconnect && error.retry === true && this.#retries < RETRY_DELAYS_MS.length;
  }

  #setState(state, error = null) {
    if (state === this.state && !error) return;
    this.error = error;
    this.state = state;
    this.#emit("state", { state, error });
  }

  #onMessage(message) {
    this.#emit("message", message);
    HANDLERS[message.type]?.(message, {
      emit: (type, detail) => this.#emit(type, detail),
      setSpeaking: (on) => this.#setSpeaking(on),
      setStats: (stats) => (this.serverStats = stats),
      setPerformance: (settings) => this.#setPerformance(settings),
      onLost: (error) => this.#onLost(error),
    });
  }

  #setPerformance({ mood, style, strength, listening }) {
    this.performance = { ...(style ? { style } : { mood }), strength, listening };
    this.#emit("performance", this.performance);
  }

  #setSpeaking(on) {
    if (on === this.speaking) return;
    this.speaking = on;
    this.#emit(on ? "speaking" : "idle");
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  async #playVideo() {
    try {
      await this.#video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError" || this.#video.muted) return;
      this.#video.muted = true; // show the video at once; audio waits for a click
      this.#emit("blocked");
      await this.#video.play().catch(() => {});
    }
  }

  async #sendCamera() {
    if (this.#cameraTrack) this.send({ type: "camera.configure", ...this.#cameraOptions });
    await this.#connection?.cameraSender?.replaceTrack(this.#cameraTrack);
  }

  async #setTrack(track) {
    this.#track = track;
    if (track) track.enabled = !this.#muted;
    await this.#connection?.sender.replaceTrack(track);
  }
}

/** Options of a session that begins as the last one was; none for the defaults. */
function performanceOptions({ mood, style, strength, listening } = {}) {
  const felt = style ? { style } : mood && mood !== "neutral" ? { mood } : {};
  const options = { ...felt, ...(felt.mood || felt.style ? { mood_strength: strength ?? 1 } : {}) };
  return listening && listening !== "off" ? { ...options, listening } : options;
}

const UNDECIDED = new Set(["connecting", "waiting", "reconnecting"]);
// Error codes of a session that cannot be resumed.
const GONE = new Set(["unknown-session", "not-found", "not-allowed"]);
const AVATAR_GONE = new Set(["unknown-avatar", "unknown-portrait"]);
const ENDED = new Set(["session-over", "idle", "engine-failed", "ended", "session-gone"]);
const RESTARTING = new Set(["stopping", "not-ready"]);
// Error codes by the reason of `session.ended`. Nobody is connected to hear `lost`, and a page that
// has closed its session itself no longer listens.
const END_CODES = {
  closed: "ended",
  deleted: "ended",
  idle: "idle",
  failed: "engine-failed",
  "model-lost": "engine-failed",
  "time-over": "session-over",
  stopping: "stopping",
};

const HANDLERS = {
  "avatar.speaking": (_, { setSpeaking }) => setSpeaking(true),
  "avatar.idle": (_, { setSpeaking }) => setSpeaking(false),
  "avatar.interrupted": ({ played_ms, dropped_ms }, { emit, setSpeaking }) => {
    emit("interrupted", { playedMs: played_ms, droppedMs: dropped_ms });
    setSpeaking(false);
  },
  "avatar.selected": ({ avatar, warnings }, { emit }) =>
    emit("selected", { avatar, warnings: warnings ?? [] }),
  "segment.finished": ({ segment_id, played_ms }, { emit }) =>
    emit("finished", { segment: segment_id, playedMs: played_ms }),
  "conversation.caption": ({ speaker, text, final }, { emit }) =>
    emit("caption", { speaker, text, final }),
  "conversation.state": ({ state }, { emit }) => emit("conversation", { state }),
  "overlay.updated": ({ overlay }, { emit }) => emit("overlay", overlay),
  "performance.updated": (message, { setPerformance }) => setPerformance(message),
  "session.ready": ({ overlay, performance, warnings }, { emit, setPerformance }) => {
    emit("overlay", overlay ?? {});
    if (performance) setPerformance(performance);
    if (warnings?.length) emit("selected", { warnings });
  },
  "camera.status": ({ status }, { emit }) => emit("camera", { status }),
  "session.stats": (message, { setStats }) => setStats(message),
  "session.warning": ({ code, detail }, { emit }) => emit("warning", { code, message: detail }),
  "session.ended": ({ reason }, { onLost }) => {
    const code = END_CODES[reason];
    const message = "The session has ended.";
    if (code) onLost(new LetsTalkError(code, message, { retry: code === "stopping" }));
  },
  "session.error": ({ code, detail, fatal }, { emit, onLost }) => {
    if (!fatal) return emit("warning", { code, message: detail });
    onLost(new LetsTalkError(code, detail, { retry: RESTARTING.has(code) }));
  },
};

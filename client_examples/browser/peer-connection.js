// One WebRTC connection to the server, from offer to close. A lost connection is never reused.

import { LetsTalkError } from "./api.js";
import { LipSync } from "./lip-sync.js";
import { StatsReader } from "./stats-reader.js";

const PING_MS = 1500;
const SERVER_SILENT_MS = 8000; // without a message for so long, the server is considered lost
const CONNECT_MS = 12_000;
const GATHER_MS = 1000;
const GRACE_MS = 1500; // a "disconnected" connection may recover by itself
const LOOK_MS = 150;
const SILENT_MS = 500; // without media for so long, the page asks whether its session still exists
const ANSWER_MS = 1000; // the server answers a request within this time, or the network is down

/** A peer connection with its data channel, audio sender, statistics and lip sync. */
export class PeerConnection {
  #api;
  #session;
  #watchOnly;
  #onLost;
  #closed = false;
  #wasConnected = false;
  #lastMessageMs = 0;
  #timer = 0;
  #stats;
  #lipSync;

  stream = new MediaStream();
  sender = null;
  /** Sends the visitor's camera; null if it was not asked for. */
  cameraSender = null;
  /** Resolves to the server's `session.ready` message. */
  ready;

  /**
   * @param {Api} api
   * @param {object} session the response of `POST /v1/sessions`.
   * @param {object} options
   * @param {boolean} options.watch receive only (WHEP), while another page speaks.
   * @param {boolean} options.camera ask the server to receive a camera, which moves the avatar.
   * @param {function} options.onMessage called with each message of the server.
   * @param {function} options.onLost called once with the error if the connection is lost.
   */
  constructor(api, session, { watch, camera, onMessage, onLost }) {
    this.#api = api;
    this.#session = session;
    this.#watchOnly = watch;
    this.#onLost = onLost;
    const pc = (this.pc = new RTCPeerConnection({ iceServers: session.ice_servers ?? [] }));
    // The sender has no track yet: receiving video needs no permission, and the microphone's track
    // can be added later without another offer.
    const direction = watch ? "recvonly" : "sendrecv";
    this.sender = pc.addTransceiver("audio", { direction }).sender;
    const hasCamera = Boolean(camera) && !watch;
    const video = pc.addTransceiver("video", { direction: hasCamera ? "sendrecv" : "recvonly" });
    if (hasCamera) this.cameraSender = video.sender;
    pc.ontrack = ({ track }) => this.stream.addTrack(track);
    pc.onconnectionstatechange = () => this.#onConnectionState();
    this.#stats = new StatsReader(pc);
    this.#lipSync = new LipSync(pc);
    this.channel = pc.createDataChannel("control");
    this.channel.binaryType = "arraybuffer";
    this.channel.onclose = () => this.#fail(connectionLost());
    this.ready = new Promise((resolve) => {
      this.channel.onmessage = ({ data }) => {
        this.#lastMessageMs = performance.now();
        const message = JSON.parse(data);
        if (message.type === "session.ready") resolve(message);
        if (!this.#closed) onMessage(message);
      };
    });
  }

  /** Exchange offer and answer with the server, and start the heartbeat. */
  async open() {
    await this.pc.setLocalDescription();
    await iceGathered(this.pc);
    const sdp = await (this.#watchOnly ? this.#offerByWhep() : this.#offerByJson());
    if (this.#closed) return;
    await this.pc.setRemoteDescription({ type: "answer", sdp });
    this.#lastMessageMs = performance.now();
    this.#timer = setInterval(() => this.#heartbeat(), PING_MS);
    this.#watchMedia();
  }

  async #offerByJson() {
    const offer = { type: "offer", sdp: this.pc.localDescription.sdp };
    if (this.cameraSender) offer.camera = true;
    return (await this.#api.post(`v1/offer?session=${this.#session.session}`, offer)).sdp;
  }

  #offerByWhep() {
    return this.#api.request(`v1/whep?session=${this.#session.session}`, {
      method: "POST",
      headers: { "content-type": "application/sdp" },
      body: this.pc.localDescription.sdp,
    });
  }

  get isOpen() {
    return this.channel.readyState === "open";
  }

  /** Bytes that wait in the data channel to be sent. */
  get bufferedBytes() {
    return this.channel.bufferedAmount;
  }

  /** Send an object as a message, or PCM as a chunk of audio, if the channel is open. */
  send(message) {
    if (!this.isOpen) return;
    this.channel.send(ArrayBuffer.isView(message) ? message : JSON.stringify(message));
  }

  /** Return the statistics of the connection, see `StatsReader`. */
  stats() {
    return this.#stats.read();
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    this.#lipSync.stop();
    this.pc.close();
  }

  #onConnectionState() {
    const state = this.pc.connectionState;
    if (state === "connected") this.#wasConnected = true;
    if (state === "failed") this.#fail(this.#wasConnected ? connectionLost() : networkBlocked());
    if (state === "disconnected") this.#awaitRecovery();
  }

  // While the server does not answer requests either, the network is down: the connection then
  // recovers faster by itself than another one could be opened. `#heartbeat` limits the wait.
  async #awaitRecovery() {
    const isDown = () => this.pc.connectionState === "disconnected";
    while (isDown()) {
      await pause(GRACE_MS);
      if (!isDown() || !(await this.#serverAnswers())) continue;
      await pause(GRACE_MS / 2);
      if (isDown()) this.#fail(connectionLost());
    }
  }

  async #serverAnswers() {
    return (await this.#ask("v1/config"))?.code !== "unreachable";
  }

  // A server that was killed says nothing, and ICE would notice it after seconds. Its proxy, or the
  // one that was started in its place, knows at once that the session is gone.
  async #watchMedia() {
    let last = 0;
    let heardMs = performance.now();
    let silentMs = SILENT_MS;
    while (!this.#closed) {
      await pause(LOOK_MS);
      const latest = latestMedia(this.pc);
      if (latest !== last) [heardMs, silentMs] = [performance.now(), SILENT_MS];
      last = latest;
      if (!last || performance.now() - heardMs < silentMs) continue;
      const problem = await this.#ask(`v1/sessions/${this.#session.session}`);
      if (problem?.code === "unknown-session") this.#fail(sessionGone());
      if (problem?.code === "unreachable") continue;
      // The session lives: ask less and less often, for a page may also be paused.
      [heardMs, silentMs] = [performance.now(), Math.min(2 * silentMs, SERVER_SILENT_MS)];
    }
  }

  /** Send a request; return the error if it is refused or not answered in time, else null. */
  async #ask(path) {
    try {
      await this.#api.request(path, { signal: AbortSignal.timeout(ANSWER_MS) });
      return null;
    } catch (error) {
      return error;
    }
  }

  #heartbeat() {
    const idleMs = performance.now() - this.#lastMessageMs;
    if (this.isOpen && idleMs > SERVER_SILENT_MS) this.#fail(connectionLost());
    else if (this.isOpen) this.send({ type: "session.ping" });
    else if (idleMs > CONNECT_MS) this.#fail(networkBlocked());
  }

  #fail(error) {
    if (this.#closed) return;
    this.close();
    this.#onLost(error);
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const connectionLost = () =>
  new LetsTalkError("connection-lost", "The connection was lost.", { retry: true });

const sessionGone = () =>
  new LetsTalkError("session-gone", "The server has lost the session.", { retry: true });

const networkBlocked = () =>
  new LetsTalkError(
    "ice-failed",
    "The server answers, but video and audio cannot get through this network.",
    { retry: true },
  );

/** Return when the latest media was played, in milliseconds, or 0 before the first. */
function latestMedia(pc) {
  const sources = pc.getReceivers().flatMap((receiver) => receiver.getSynchronizationSources());
  return Math.max(0, ...sources.map(({ timestamp }) => timestamp));
}

/** Resolve when all ICE candidates are gathered, after `GATHER_MS` at the latest. */
function iceGathered(pc) {
  return new Promise((done) => {
    const check = () => pc.iceGatheringState === "complete" && done();
    pc.addEventListener("icegatheringstatechange", check);
    setTimeout(done, GATHER_MS);
    check();
  });
}

// One peer connection, from offer to end. It never comes back: a lost one is replaced.

import { LetsTalkError } from "./api.js";
import { LipSync } from "./lip-sync.js";
import { StatsReader } from "./stats-reader.js";

const PING_MS = 1500;
const SILENT_MS = 4000; // without a word from the server for so long it is taken for lost
const CONNECT_MS = 12_000;
const GATHER_MS = 1000;
const GRACE_MS = 1500; // "disconnected" may heal by itself

export class Link {
  #api;
  #session;
  #watches;
  #onLost;
  #closed = false;
  #wasUp = false;
  #heardAtMs = 0;
  #timer = 0;
  #stats;
  #lipSync;

  stream = new MediaStream();
  sender = null;
  /** Resolves with the server's `session.ready`. */
  ready;

  /**
   * @param {Api} api
   * @param {object} session answer of `POST /v1/sessions`.
   * @param {boolean} watch only receives (WHEP), beside whoever speaks.
   * @param {function} onMessage gets each message of the server.
   * @param {function} onLost gets the error, once, if the connection ends by itself.
   */
  constructor(api, session, { watch, onMessage, onLost }) {
    this.#api = api;
    this.#session = session;
    this.#watches = watch;
    this.#onLost = onLost;
    const pc = (this.pc = new RTCPeerConnection({ iceServers: session.ice_servers ?? [] }));
    // Without a track yet: the live picture needs no permission, and what is to be spoken is put
    // into the sender later without another offer.
    const direction = watch ? "recvonly" : "sendrecv";
    this.sender = pc.addTransceiver("audio", { direction }).sender;
    pc.addTransceiver("video", { direction: "recvonly" });
    pc.ontrack = ({ track }) => this.stream.addTrack(track);
    pc.onconnectionstatechange = () => this.#watchState();
    this.#stats = new StatsReader(pc);
    this.#lipSync = new LipSync(pc);
    this.channel = pc.createDataChannel("control");
    this.channel.binaryType = "arraybuffer";
    this.channel.onclose = () => this.#lose(connectionLost());
    this.ready = new Promise((resolve) => {
      this.channel.onmessage = ({ data }) => {
        this.#heardAtMs = performance.now();
        const message = JSON.parse(data);
        if (message.type === "session.ready") resolve(message);
        if (!this.#closed) onMessage(message);
      };
    });
  }

  async open() {
    await this.pc.setLocalDescription();
    await gathered(this.pc);
    const sdp = await (this.#watches ? this.#askWhep() : this.#askOffer());
    if (this.#closed) return;
    await this.pc.setRemoteDescription({ type: "answer", sdp });
    this.#heardAtMs = performance.now();
    this.#timer = setInterval(() => this.#watch(), PING_MS);
  }

  async #askOffer() {
    const offer = { type: "offer", sdp: this.pc.localDescription.sdp, session: this.#session.session };
    return (await this.#api.post("v1/offer", offer)).sdp;
  }

  #askWhep() {
    return this.#api.request(`v1/whep?session=${this.#session.session}`, {
      method: "POST",
      headers: { "content-type": "application/sdp" },
      body: this.pc.localDescription.sdp,
    });
  }

  get isOpen() {
    return this.channel.readyState === "open";
  }

  /** Bytes that wait to leave. */
  get waiting() {
    return this.channel.bufferedAmount;
  }

  /** Send an object as a message, or bytes as a piece of sound. */
  send(message) {
    if (!this.isOpen) return;
    this.channel.send(ArrayBuffer.isView(message) ? message : JSON.stringify(message));
  }

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

  #watchState() {
    const state = this.pc.connectionState;
    if (state === "connected") this.#wasUp = true;
    if (state === "failed") this.#lose(this.#wasUp ? connectionLost() : noPath());
    if (state === "disconnected") {
      setTimeout(() => {
        if (this.pc.connectionState === "disconnected") this.#lose(connectionLost());
      }, GRACE_MS);
    }
  }

  #watch() {
    const silentMs = performance.now() - this.#heardAtMs;
    if (this.isOpen && silentMs > SILENT_MS) this.#lose(connectionLost());
    else if (this.isOpen) this.send({ type: "session.ping" });
    else if (silentMs > CONNECT_MS) this.#lose(noPath());
  }

  #lose(error) {
    if (this.#closed) return;
    this.close();
    this.#onLost(error);
  }
}

const connectionLost = () =>
  new LetsTalkError("connection-lost", "The connection was lost.", { retry: true });

const noPath = () =>
  new LetsTalkError(
    "ice-failed",
    "The server answers, but picture and sound find no way through this network.",
    { retry: true },
  );

function gathered(pc) {
  return new Promise((done) => {
    const check = () => pc.iceGatheringState === "complete" && done();
    pc.addEventListener("icegatheringstatechange", check);
    setTimeout(done, GATHER_MS);
    check();
  });
}

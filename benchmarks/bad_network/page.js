// What the page of `chromium_peer.py` runs: the avatar of the page's own module, a microphone that
// beeps, and a record of what is shown and heard. Times are milliseconds of `performance.now()`.

import { LetsTalkAvatar } from "/letstalk.js";

const BLOCK = 32; // as marks.py
const COLUMNS = 4;
const ROWS = 3;
const LOUD = 0.03;
const QUIET_S = 0.3;

const record = { shown: [], heard: [], sounds: [], states: [], messages: [] };
const video = document.querySelector("video");
const drawing = new OffscreenCanvas(COLUMNS * BLOCK, ROWS * BLOCK);
const pixels = drawing.getContext("2d", { willReadFrequently: true });
const listenedTo = new Set();
let pc = null;

// The module keeps its connection to itself.
const Native = window.RTCPeerConnection;
window.RTCPeerConnection = class extends Native {
  constructor(...options) {
    super(...options);
    pc = this;
    this.addEventListener("connectionstatechange", () =>
      record.states.push([performance.now(), this.connectionState]),
    );
  }
};

function readMarks() {
  pixels.drawImage(video, 0, 0, drawing.width, drawing.height, 0, 0, drawing.width, drawing.height);
  const data = pixels.getImageData(0, 0, drawing.width, drawing.height).data;
  const bits = [];
  for (let row = 0; row < ROWS; row++) {
    for (let column = 0; column < COLUMNS; column++) {
      const place = (row + 0.5) * BLOCK * drawing.width + (column + 0.5) * BLOCK;
      bits.push(Number(data[4 * place] > 128));
    }
  }
  const parity = bits.pop();
  if (bits.reduce((sum, bit) => sum + bit, 0) % 2 !== parity) return null;
  const number = (part) => part.reduce((n, bit) => (n << 1) | (bit ^ (n & 1)), 0);
  const age = number(bits.slice(0, 5));
  return age === 31 ? null : 40 * age - number(bits.slice(5));
}

function look(now, { expectedDisplayTime }) {
  record.shown.push([expectedDisplayTime, expectedDisplayTime, readMarks()]);
  video.requestVideoFrameCallback(look);
}

async function listen(track) {
  if (listenedTo.has(track.id)) return;
  listenedTo.add(track.id);
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  let quietS = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const samples = new Float32Array(value.numberOfFrames);
    value.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
    samples.forEach((sample, i) => {
      const loud = Math.abs(sample) > LOUD;
      if (loud && quietS > QUIET_S) {
        record.heard.push((value.timestamp + (1e6 * i) / value.sampleRate) / 1000);
      }
      quietS = loud ? 0 : quietS + 1 / value.sampleRate;
    });
    value.close();
  }
}

// Packets of audio arrive: the jitter buffer conceals their absence, so that its output tells nothing.
async function countPackets() {
  let last = 0;
  for (;;) {
    await new Promise((done) => setTimeout(done, 50));
    if (!pc) continue;
    for (const report of (await pc.getStats()).values()) {
      if (report.type !== "inbound-rtp" || report.kind !== "audio") continue;
      if (report.packetsReceived !== last) record.sounds.push(performance.now());
      last = report.packetsReceived;
    }
  }
}

async function loudspeakerDelay() {
  for (const report of (await pc.getStats()).values()) {
    if (report.type === "media-playout") {
      return (1000 * report.totalPlayoutDelay) / report.totalSamplesCount;
    }
  }
  throw new Error("the browser does not tell its loudspeaker's delay");
}

function microphone(samples) {
  const context = new AudioContext({ sampleRate: 48000 });
  const buffer = context.createBuffer(1, samples.length, 48000);
  buffer.getChannelData(0).set(samples.map((sample) => sample / 32768));
  const source = new AudioBufferSourceNode(context, { buffer, loop: true });
  const destination = context.createMediaStreamDestination();
  source.connect(destination);
  source.start();
  return destination.stream;
}

const avatar = new LetsTalkAvatar(video, { reconnect: "always" });
avatar.addEventListener("state", ({ detail }) =>
  record.states.push([performance.now(), `page ${detail.state} ${detail.error?.code ?? ""}`]),
);
avatar.addEventListener("message", ({ detail }) =>
  record.messages.push([performance.now(), detail.type]),
);

window.start = async (samples) => {
  await avatar.connect();
  avatar.speak(microphone(samples));
  video.requestVideoFrameCallback(look);
  setInterval(() => video.srcObject?.getAudioTracks().forEach(listen), 100);
  countPackets();
  return avatar.session.session;
};

window.finish = async () => {
  const laterMs = await loudspeakerDelay();
  const heard = record.heard.map((at) => at + laterMs);
  const stats = [...(await pc.getStats()).values()].filter(({ type }) => type === "inbound-rtp");
  return { ...record, heard, session: avatar.session.session, stats };
};

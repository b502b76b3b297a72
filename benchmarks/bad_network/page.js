// What the page of `chromium_peer.py` runs: the avatar of the page's own module, a microphone that
// beeps, and a record of what is shown and heard. Times are milliseconds of `performance.now()`.

import { LetsTalkAvatar } from "/letstalk.js";
import { listen, loudspeakerDelay } from "/listening.js";

const BLOCK = 32; // as marks.py
const COLUMNS = 4;
const ROWS = 3;
const GAP_MS = 170; // without a packet of audio
const LOST_BEGINNING_MS = 400; // after a gap, with the delay of the jitter buffer

const record = { shown: [], heard: [], sounds: [], states: [], messages: [] };
const video = document.querySelector("video");
const drawing = new OffscreenCanvas(COLUMNS * BLOCK, ROWS * BLOCK);
const pixels = drawing.getContext("2d", { willReadFrequently: true });
const listenedTo = new Set();
let pc = null;
let resumedMs = -Infinity; // when packets of audio came again after a gap

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

function hear(track) {
  if (listenedTo.has(track.id)) return;
  listenedTo.add(track.id);
  listen(track, (at) => {
    // A beep whose beginning was lost cannot be timed.
    if (performance.now() - resumedMs > LOST_BEGINNING_MS) record.heard.push(at);
  });
}

function noteSound(now) {
  if (now - (record.sounds.at(-1) ?? now) > GAP_MS) resumedMs = now;
  record.sounds.push(now);
}

// Packets of audio arrive: the jitter buffer conceals their absence, so that its output tells nothing.
async function countPackets() {
  let last = 0;
  for (;;) {
    await new Promise((done) => setTimeout(done, 50));
    if (!pc) continue;
    for (const report of (await pc.getStats()).values()) {
      if (report.type !== "inbound-rtp" || report.kind !== "audio") continue;
      if (report.packetsReceived !== last) noteSound(performance.now());
      last = report.packetsReceived;
    }
  }
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
  setInterval(() => video.srcObject?.getAudioTracks().forEach(hear), 100);
  countPackets();
  return avatar.session.session;
};

window.finish = async () => {
  const laterMs = await loudspeakerDelay(pc);
  const heard = record.heard.map((at) => at + laterMs);
  const stats = [...(await pc.getStats()).values()].filter(({ type }) => type === "inbound-rtp");
  return { ...record, heard, session: avatar.session.session, stats };
};

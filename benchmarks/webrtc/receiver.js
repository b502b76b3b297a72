// What the benchmark runs in the browser: a peer that speaks in beeps and measures what comes back.
"use strict";

const PERIOD_S = 1.0; // from beep to beep
const BEEP_S = 0.24;
const PATCH = 24; // read from the middle of the avatar's patch
const LIT = 75; // shade between dark (20) and dim (128)

let connection = null;

// A buzz like a vowel: 120 Hz and its harmonics, loud in two formants.
function voice(context) {
  const rate = context.sampleRate;
  const buffer = context.createBuffer(1, rate * PERIOD_S, rate);
  const samples = buffer.getChannelData(0);
  for (let n = 0; n < BEEP_S * rate; n++) {
    let value = 0;
    for (let k = 1; k < 30; k++) {
      const hz = 120 * k;
      const gain = 1 / (1 + ((hz - 700) / 200) ** 2) + 0.5 / (1 + ((hz - 1200) / 200) ** 2);
      value += gain * Math.cos((2 * Math.PI * hz * n) / rate);
    }
    samples[n] = 0.12 * value * Math.min(1, (BEEP_S * rate - n) / 480);
  }
  const source = new AudioBufferSourceNode(context, { buffer, loop: true });
  return source;
}

const ONSETS = `
class Onsets extends AudioWorkletProcessor {
  quiet = 0;
  process([[samples]]) {
    for (let i = 0; i < (samples?.length ?? 0); i++) {
      const loud = Math.abs(samples[i]) > 0.03;
      if (loud && this.quiet > 0.3 * sampleRate) {
        this.port.postMessage((currentFrame + i) / sampleRate);
      }
      this.quiet = loud ? 0 : this.quiet + 1;
    }
    return true;
  }
}
registerProcessor("onsets", Onsets);`;

function preferCodec(transceiver, codec) {
  const known = RTCRtpReceiver.getCapabilities("video").codecs;
  const wanted = known.filter((each) => each.mimeType === `video/${codec}`);
  transceiver.setCodecPreferences(wanted);
}

// Connect; gives the milliseconds from the offer to the first picture.
window.connect = async (codec, speaks) => {
  const { LipSync } = await import("/lip-sync.js"); // as the page does
  const { listen } = await import("/listening.js");
  const context = new AudioContext({ sampleRate: 48000, latencyHint: "interactive" });
  await context.resume();
  const source = voice(context);
  const microphone = context.createMediaStreamDestination();
  const pc = new RTCPeerConnection({ iceServers: [] });
  pc.addTransceiver(microphone.stream.getAudioTracks()[0], { direction: "sendrecv" });
  preferCodec(pc.addTransceiver("video", { direction: "recvonly" }), codec);
  const video = document.querySelector("video");
  const stream = new MediaStream();
  pc.ontrack = ({ track }) => {
    stream.addTrack(track);
    if (track.kind === "audio") listen(track, (at) => onsets.heard.push(at));
  };
  video.srcObject = stream;
  const onsets = { said: [], heard: [] };
  const module = URL.createObjectURL(new Blob([ONSETS], { type: "text/javascript" }));
  await context.audioWorklet.addModule(module);
  const worklet = new AudioWorkletNode(context, "onsets");
  source.connect(microphone);
  source.connect(worklet);
  worklet.port.onmessage = ({ data: at }) => {
    onsets.said.push(performance.now() - (context.currentTime - at) * 1000);
  };
  connection = { pc, video, context, onsets, lipSync: new LipSync(pc) };
  await pc.setLocalDescription(await pc.createOffer());
  if (pc.iceGatheringState !== "complete") {
    await new Promise((done) => {
      pc.onicegatheringstatechange = () => pc.iceGatheringState === "complete" && done();
    });
  }
  const first = new Promise((done) => video.requestVideoFrameCallback(() => done()));
  const asked = performance.now();
  const response = await fetch("/v1/offer", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ type: "offer", sdp: pc.localDescription.sdp }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  connection.session = answer.session;
  await pc.setRemoteDescription({ type: "answer", sdp: answer.sdp });
  await video.play();
  await first;
  const took = performance.now() - asked;
  if (speaks) source.start();
  return took;
};

// Watch for so long; gives what was said, heard and seen, all in milliseconds of one clock.
window.watch = async (seconds) => {
  const { video, onsets } = connection;
  const drawing = new OffscreenCanvas(PATCH, PATCH);
  const context = drawing.getContext("2d", { willReadFrequently: true });
  const flashes = [];
  let dark = false;
  let pictures = 0;
  let first = null;
  let last = null;
  let gap = 0;
  onsets.said.length = onsets.heard.length = 0;
  const look = (now, metadata) => {
    const shown = metadata.expectedDisplayTime;
    pictures += 1;
    first ??= { at: shown, presented: metadata.presentedFrames };
    if (last) gap = Math.max(gap, shown - last.at);
    last = { at: shown, presented: metadata.presentedFrames };
    context.drawImage(video, PATCH, PATCH, PATCH, PATCH, 0, 0, PATCH, PATCH);
    const data = context.getImageData(0, 0, PATCH, PATCH).data;
    let shade = 0;
    for (let i = 1; i < data.length; i += 4) shade += data[i];
    shade /= data.length / 4;
    if (shade > LIT && dark) {
      flashes.push({ at: shown, offset: Math.max(0, ((shade - 128) / 127) * 40) });
    }
    dark = shade < LIT;
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
  await new Promise((done) => setTimeout(done, seconds * 1000));
  const stats = {};
  for (const report of (await connection.pc.getStats()).values()) {
    if (report.type === "inbound-rtp" && report.kind === "video") Object.assign(stats, report);
  }
  const fps = ((last.presented - first.presented) * 1000) / (last.at - first.at);
  const { loudspeakerDelay } = await import("/listening.js");
  const later = await loudspeakerDelay(connection.pc);
  const heard = onsets.heard.map((at) => at + later);
  return { said: onsets.said, heard, flashes, fps, pictures, gap, stats };
};

window.leave = async () => {
  await fetch(`/v1/sessions/${connection.session}`, { method: "DELETE" });
  connection.lipSync.stop();
  connection.pc.close();
  await connection.context.close();
};

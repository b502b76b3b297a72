// A WebRTC client that shares no code with the server: werift, in TypeScript on Node.
// Plays a session through WHEP, speaks to it through WHIP, and writes what it got as JSON.
// Usage: node werift_peer.mjs WERIFT_FOLDER BASE_URL OPUS_JSON SECONDS > got.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, base, opusFile, seconds] = process.argv.slice(2);
const werift = createRequire(`${folder}/package.json`)("werift");
const { MediaStreamTrack, RTCPeerConnection, RtpHeader, RtpPacket, useOPUS, useVP8 } = werift;

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function post(path, body, type) {
  const headers = { "content-type": type };
  const response = await fetch(new URL(path, base), { method: "POST", headers, body });
  if (response.status !== 201) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return response;
}

function connection() {
  return new RTCPeerConnection({
    codecs: { audio: [useOPUS()], video: [useVP8()] },
    iceServers: [],
    bundlePolicy: "max-bundle",
  });
}

async function exchange(pc, path) {
  await pc.setLocalDescription(await pc.createOffer());
  while (pc.iceGatheringState !== "complete") await sleep(20);
  const response = await post(path, pc.localDescription.sdp, "application/sdp");
  await pc.setRemoteDescription({ type: "answer", sdp: await response.text() });
  while (pc.connectionState !== "connected") await sleep(20);
  return new URL(response.headers.get("location"), base);
}

async function play(session, got) {
  const pc = connection();
  for (const kind of ["video", "audio"]) {
    const transceiver = pc.addTransceiver(kind, { direction: "recvonly" });
    transceiver.onTrack.subscribe((track) => {
      track.onReceiveRtp.subscribe((rtp) => {
        got[kind].push({
          sequence: rtp.header.sequenceNumber,
          timestamp: rtp.header.timestamp,
          marker: rtp.header.marker,
          payload: Buffer.from(rtp.payload).toString("base64"),
        });
      });
    });
  }
  return { pc, address: await exchange(pc, `v1/whep?session=${session}`) };
}

async function speak(session, packets) {
  const pc = connection();
  const track = new MediaStreamTrack({ kind: "audio" });
  pc.addTransceiver(track, { direction: "sendonly" });
  const address = await exchange(pc, `v1/whip?session=${session}`);
  const payloadType = pc.getTransceivers()[0].codecs[0].payloadType;
  const start = performance.now();
  for (const [count, packet] of packets.entries()) {
    await sleep(start + count * 20 - performance.now());
    const header = new RtpHeader({
      payloadType,
      sequenceNumber: (65_500 + count) & 0xffff, // wraps around on its way
      timestamp: count * 960,
      ssrc: 1234,
    });
    track.writeRtp(new RtpPacket(header, Buffer.from(packet, "base64")));
  }
  return { pc, address };
}

const got = { video: [], audio: [] };
const packets = JSON.parse(readFileSync(opusFile, "utf8"));
const made = await (await post("v1/sessions", "{}", "application/json")).json();
const name = made.session ?? made.id;
const player = await play(name, got);
const speaker = await speak(name, packets);
await sleep(Number(seconds) * 1000);
got.deleted = [];
for (const { pc, address } of [speaker, player]) {
  got.deleted.push((await fetch(address, { method: "DELETE" })).status);
  await pc.close();
}
process.stdout.write(JSON.stringify(got), () => process.exit(0));

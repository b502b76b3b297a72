// The page: shows the avatar at once, and lends it the visitor's voice when asked.
//
// One peer connection for all: the audio section is negotiated empty, so the live picture needs
// no permission; the microphone's track is put into it later without another negotiation.

const PING_MS = 2000;
const SILENT_MS = 8000; // without a pong for so long the connection is taken for lost
const CONNECT_MS = 15000;
const GATHER_MS = 1000;
const RETRIES_MS = [500, 1000, 2000, 4000, 8000];
const SPEECH_DB = -60; // lower end of the level meter

const $ = (id) => document.getElementById(id);
const page = document.body;
const video = $("video");

let avatars = [];
let uploads = [];
let chosen = null; // {name | portrait, still, thumbnail, label, ...}
let maxUploadBytes = Infinity;
let link = null; // the present connection
let microphone = null; // {stream, context}
let opening = false; // the microphone is being opened or closed
let tries = 0;
let retryTimer = 0;

class Refused extends Error {} // an answer of the server, in words for the visitor

// ---- Server ------------------------------------------------------------------------------

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server cannot be reached.");
  }
  const isJson = response.headers.get("content-type")?.includes("json");
  const body = isJson ? await response.json() : null;
  if (!response.ok) {
    const refusal = new Refused(body?.detail ?? `The server answered ${response.status}.`);
    refusal.code = body?.code;
    throw refusal;
  }
  return body;
}

const choiceFields = (face) => (face.portrait ? { portrait: face.portrait } : { avatar: face.name });

// ---- Connection --------------------------------------------------------------------------

class Link {
  constructor() {
    this.session = null;
    this.closed = false;
    this.pc = new RTCPeerConnection();
    this.sender = this.pc.addTransceiver("audio", { direction: "sendrecv" }).sender;
    this.pc.addTransceiver("video", { direction: "recvonly" });
    this.channel = this.pc.createDataChannel("control");
    this.stream = new MediaStream();
    this.pc.ontrack = ({ track }) => this.stream.addTrack(track);
    this.pc.onconnectionstatechange = () => {
      if (this.pc.connectionState === "failed") this.lost();
    };
    this.channel.onmessage = ({ data }) => this.hear(JSON.parse(data));
    this.channel.onclose = () => this.lost();
    this.heardAt = performance.now();
    this.timer = setInterval(() => this.watch(), PING_MS);
  }

  async open() {
    await this.pc.setLocalDescription();
    await gathered(this.pc);
    const asked = chosen;
    const answer = await ask("v1/offer", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ type: "offer", sdp: this.pc.localDescription.sdp, ...choiceFields(asked) }),
    });
    this.session = answer.session;
    if (this.closed) return this.hangUp();
    await this.pc.setRemoteDescription({ type: "answer", sdp: answer.sdp });
    this.asked = asked;
    this.heardAt = performance.now();
    if (microphone) await this.sender.replaceTrack(microphone.stream.getAudioTracks()[0]);
    video.srcObject = this.stream;
    play();
  }

  send(message) {
    if (this.channel.readyState === "open") this.channel.send(JSON.stringify(message));
  }

  watch() {
    const limit = this.channel.readyState === "open" ? SILENT_MS : CONNECT_MS;
    if (performance.now() - this.heardAt > limit) this.lost();
    else this.send({ type: "session.ping" });
  }

  hear(message) {
    this.heardAt = performance.now();
    const deed = DEEDS[message.type];
    if (deed) deed(message, this);
  }

  lost() {
    if (this.closed) return;
    this.close();
    again();
  }

  hangUp() {
    // keepalive: also while the page is being left
    if (this.session) fetch(`v1/sessions/${this.session}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  close() {
    if (this.closed) return;
    this.closed = true;
    clearInterval(this.timer);
    this.hangUp();
    this.pc.close();
  }
}

const DEEDS = {
  "session.ready": ({ warnings }, here) => {
    tries = 0;
    if (here.asked !== chosen) here.send({ type: "avatar.select", ...choiceFields(chosen) });
    warn(warnings);
  },
  "session.warning": ({ detail }) => say($("note"), detail, true),
  "session.error": ({ detail, fatal }, here) => {
    if (!fatal) return say($("note"), detail);
    here.close();
    fail(detail);
  },
  "avatar.selected": ({ warnings }) => warn(warnings),
  "avatar.speaking": () => speaking(true),
  "avatar.idle": () => speaking(false),
};

function gathered(pc) {
  return new Promise((done) => {
    const check = () => pc.iceGatheringState === "complete" && done();
    pc.addEventListener("icegatheringstatechange", check);
    setTimeout(done, GATHER_MS);
    check();
  });
}

async function connect() {
  clearTimeout(retryTimer);
  link?.close();
  speaking(false);
  show(tries ? "reconnecting" : "connecting", tries ? "Reconnecting" : "Waking the avatar");
  const mine = (link = new Link());
  try {
    await mine.open();
  } catch (error) {
    if (mine !== link) return;
    mine.close();
    if (error instanceof Refused) fail(error.message);
    else again(error.message);
  }
}

function again(reason = "The connection was lost.") {
  if (tries >= RETRIES_MS.length) return fail(`${reason} Check the network and that the server runs.`);
  show("reconnecting", "Reconnecting");
  retryTimer = setTimeout(connect, RETRIES_MS[tries++]);
}

function fail(reason) {
  clearTimeout(retryTimer);
  $("trouble").textContent = reason;
  show("error", "Not connected");
}

// ---- Picture and sound -------------------------------------------------------------------

function show(state, words) {
  page.dataset.state = state;
  $("status").textContent = words;
  $("talk").disabled = state === "error" || opening;
  if (state === "live") return;
  $("interrupt").disabled = true;
  delete page.dataset.video; // the still picture stands in, or the ended stream would show black
}

function play() {
  video.play().catch(() => {
    // Sound was not allowed yet: the picture comes first, the sound with the next press.
    setSound(false);
    video.play().catch(() => {});
  });
}

function setSound(on) {
  video.muted = !on;
  $("sound").setAttribute("aria-pressed", String(on));
  $("sound-label").textContent = on ? "Sound on" : "Sound off";
}

function speaking(yes) {
  $("interrupt").disabled = !yes;
  page.toggleAttribute("data-speaking", yes);
}

function interrupt() {
  link?.send({ type: "avatar.interrupt" });
}

video.addEventListener("playing", () => {
  if (!link || link.closed) return;
  page.dataset.video = "on";
  show("live", microphone ? "Live: it hears you" : "Live");
});

// ---- Microphone --------------------------------------------------------------------------

async function toggleMicrophone() {
  if (opening) return;
  opening = true;
  $("talk").disabled = true;
  say($("note"), "");
  try {
    if (microphone) await closeMicrophone();
    else await openMicrophone();
  } catch (error) {
    say($("note"), whyNoMicrophone(error));
  }
  opening = false;
  $("talk").disabled = false;
  const on = Boolean(microphone);
  page.dataset.mic = on ? "on" : "off";
  $("talk").setAttribute("aria-pressed", String(on));
  $("talk-label").textContent = on ? "Mute" : "Start talking";
  if (page.dataset.state === "live") show("live", on ? "Live: it hears you" : "Live");
}

async function openMicrophone() {
  setSound(true); // the press is the gesture that browsers want before sound
  play();
  if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
  });
  const track = stream.getAudioTracks()[0];
  track.onended = () => microphone && toggleMicrophone(); // unplugged, or taken away
  microphone = { stream, context: meter(stream) };
  await link?.sender.replaceTrack(track);
}

async function closeMicrophone() {
  const { stream, context } = microphone;
  microphone = null;
  for (const track of stream.getTracks()) track.stop();
  context.close();
  await link?.sender.replaceTrack(null);
}

function whyNoMicrophone(error) {
  const words = {
    NotAllowedError: "The microphone is not allowed. Allow it for this page in the browser's settings and press again.",
    NotFoundError: "No microphone was found. Plug one in and press again.",
    NotReadableError: "The microphone is used by another program. Close that one and press again.",
    SecurityError: "Browsers open the microphone only on localhost or over HTTPS. Open the page that way.",
  };
  return words[error.name] ?? "The microphone could not be opened. Press again.";
}

function meter(stream) {
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 1024 });
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  let level = 0;
  const draw = () => {
    if (context.state === "closed") return page.style.setProperty("--level", 0);
    analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
    const now = Math.max(0, Math.min(1, 1 - (10 * Math.log10(power + 1e-9)) / SPEECH_DB));
    level = Math.max(now, level * 0.9);
    page.style.setProperty("--level", level.toFixed(3));
    requestAnimationFrame(draw);
  };
  draw();
  return context;
}

// ---- Faces -------------------------------------------------------------------------------

function choose(face) {
  chosen = face;
  $("backdrop").src = face.still;
  $("still").src = face.still;
  $("still").alt = `Portrait: ${face.label}`;
  if (link?.session && link.channel.readyState === "open") {
    link.send({ type: "avatar.select", ...choiceFields(face) });
  } else if (!link || page.dataset.state === "error") {
    tries = 0;
    connect();
  } // otherwise the connection is on its way and asks for this face when it is there
}

function drawFaces() {
  const cards = [...avatars, ...uploads].map((face) => {
    const card = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "face", className: "hidden" });
    radio.checked = face === chosen;
    radio.addEventListener("change", () => choose(face));
    const body = document.createElement("span");
    const image = Object.assign(document.createElement("img"), { src: face.thumbnail, alt: "" });
    body.append(image, face.label);
    card.className = "face";
    card.append(radio, body);
    return card;
  });
  $("faces").replaceChildren($("faces").firstElementChild, ...cards);
}

async function upload(file) {
  if (!file || page.dataset.busy !== undefined) return;
  say($("upload-note"), "");
  if (file.size > maxUploadBytes) {
    const limit = Math.round(maxUploadBytes / 1e6);
    return say($("upload-note"), `That file is too large: ${limit} MB are accepted. Scale the picture down and try again.`);
  }
  page.dataset.busy = "";
  $("upload-label").textContent = "Looking for the face";
  try {
    const answer = await ask("v1/portraits", {
      method: "POST",
      headers: { "content-type": "application/octet-stream" },
      body: file,
    });
    const label = uploads.length ? `Yours ${uploads.length + 1}` : "Yours";
    const face = { ...answer, label };
    uploads.push(face);
    choose(face);
    drawFaces();
    warn(answer.warnings);
  } catch (error) {
    say($("upload-note"), error.message);
  }
  delete page.dataset.busy;
  $("upload-label").textContent = "Use your own picture";
  $("file").value = "";
}

function warn(warnings = []) {
  if (warnings.length) say($("upload-note"), warnings.join(" "), true);
}

function say(place, words, mild = false) {
  place.textContent = words;
  place.classList.toggle("mild", mild);
  place.hidden = !words;
}

// ---- Start -------------------------------------------------------------------------------

$("talk").addEventListener("click", toggleMicrophone);
$("interrupt").addEventListener("click", interrupt);
$("retry").addEventListener("click", () => {
  tries = 0;
  if (chosen) connect();
  else start();
});
$("sound").addEventListener("click", () => {
  setSound(video.muted);
  play();
});
$("file").addEventListener("change", (event) => upload(event.target.files[0]));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("interrupt").disabled) interrupt();
});
addEventListener("pagehide", () => link?.close());
addEventListener("pageshow", (event) => {
  if (event.persisted && link?.closed) connect(); // back from the browser's page cache
});

for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    page.dataset.drag = "";
  });
}
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) delete page.dataset.drag;
});
addEventListener("drop", (event) => {
  event.preventDefault();
  delete page.dataset.drag;
  upload(event.dataTransfer?.files[0]);
});

async function start() {
  show("connecting", "Waking the avatar");
  try {
    const answer = await ask("v1/avatars");
    avatars = answer.avatars;
    maxUploadBytes = answer.max_upload_bytes;
  } catch (error) {
    return fail(error.message);
  }
  choose(avatars[0]);
  drawFaces();
}

start();

// The page: shows the avatar at once, and lends it the visitor's voice when asked.

import { Api } from "./api.js";
import { Cast } from "./avatar-picker.js";
import { LetsTalkAvatar, LetsTalkError } from "./letstalk.js";
import { Microphone } from "./microphone.js";
import { OverlayControl } from "./overlay-control.js";
import { Readout } from "./stats-panel.js";
import { explain } from "./error-messages.js";

const KEPT_SESSION = "letstalk.session"; // survives a reload, not the tab
const WARNING_MS = 10_000;
const RELEASE_MS = 250; // the end of a word is often after the key

const $ = (id) => document.getElementById(id);
const page = document.body;
const video = $("video");

const query = new URLSearchParams(location.search);
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? undefined;
const server = query.get("server") ?? undefined;
const kept = keptSession();

const api = new Api(server);
const microphone = new Microphone();
let avatar = null;
let cast = null;
let holding = false; // the talk button is held in push-to-talk
let opening = false;

// ---- State of the connection -------------------------------------------------------------

const STATES = {
  new: ["Starting", ""],
  connecting: ["Connecting", "Waking up"],
  live: ["Live", ""],
  reconnecting: ["Reconnecting", "Reconnecting"],
  failed: ["Not connected", ""],
  closed: ["Ended", ""],
};

function onState({ state, error }) {
  page.dataset.state = state;
  $("status").textContent = STATES[state][0];
  if (state !== "live") {
    delete page.dataset.video; // the still picture stands in, or the ended stream would show black
    page.removeAttribute("data-speaking");
    stopPlaying();
  }
  if (state === "live") forgetNote("connection");
  $("curtain").hidden = state !== "failed";
  if (state === "failed") raiseCurtain(error);
  if (state === "reconnecting" && error?.code !== "connection-lost") {
    note(error, { mild: true, about: "connection" });
  }
  refresh();
}

function raiseCurtain(error) {
  const { title, text, action } = explain(error);
  $("trouble-title").textContent = title;
  $("trouble").textContent = text;
  $("retry").textContent = action;
  forgetNote("connection");
}

/** Set what follows from the state: words, and which controls can be used. */
function refresh() {
  const { state } = page.dataset;
  const isLive = state === "live";
  const isHold = page.dataset.mode === "hold";
  const mic = microphone.isOpen ? (microphone.muted ? "muted" : "on") : "off";
  page.dataset.mic = mic;
  $("talk").disabled = opening || state === "failed";
  $("talk").setAttribute("aria-pressed", String(isHold ? holding : mic !== "off"));
  $("talk-label").textContent = talkWords(isHold, mic);
  $("mute").disabled = mic === "off" || isHold;
  $("mute").setAttribute("aria-pressed", String(mic === "muted" && !isHold));
  $("mute-label").textContent = mic === "muted" && !isHold ? "Unmute" : "Mute";
  $("interrupt").disabled = !isLive || !(avatar.speaking || !$("playing").hidden);
  $("play").disabled = !isLive;
  $("caption").textContent = caption(state, isHold, mic);
  $("hint").textContent = isHold ? "Hold the button, or the space bar, while you speak." : "Headphones give the cleanest sound.";
}

function talkWords(isHold, mic) {
  if (isHold) return holding ? "Listening" : "Hold to talk";
  return { off: "Start talking", on: "Stop talking", muted: "Muted" }[mic];
}

function caption(state, isHold, mic) {
  if (state !== "live") return STATES[state][1];
  if (avatar.speaking) return "Speaking";
  return mic === "on" ? "Listening" : "";
}

// ---- Messages ------------------------------------------------------------------------------

function note(error, { mild = false, about = "" } = {}) {
  const { title, text } = explain(error);
  $("note-title").textContent = title;
  $("note-text").textContent = text;
  $("note").toggleAttribute("data-mild", mild);
  $("note").dataset.about = about;
  $("note").hidden = false;
}

function forgetNote(about) {
  if (about === undefined || $("note").dataset.about === about) $("note").hidden = true;
}

let forgetting = 0;

function warn({ code, message }) {
  if (code === "bad-message") return; // ours, and of no use to a visitor
  note({ code, message }, { mild: true, about: "server" });
  clearTimeout(forgetting);
  forgetting = setTimeout(() => forgetNote("server"), WARNING_MS);
}

const say = (words, options) => note(new LetsTalkError("", words), { mild: true, ...options });

// ---- Voice ---------------------------------------------------------------------------------

async function openMicrophone() {
  if (opening || microphone.isOpen) return microphone.isOpen;
  opening = true;
  refresh();
  setSound(true); // the press is the gesture that browsers want before sound
  try {
    await microphone.open();
    await avatar.speak(microphone.stream);
    forgetNote("microphone");
  } catch (error) {
    note(error, { about: "microphone" });
  }
  opening = false;
  refresh();
  return microphone.isOpen;
}

async function closeMicrophone() {
  microphone.close();
  await avatar.hush();
}

async function toggleTalk() {
  if (page.dataset.mode === "hold") return;
  if (microphone.isOpen && microphone.muted) microphone.muted = false;
  else if (microphone.isOpen) await closeMicrophone();
  else await openMicrophone();
}

async function press() {
  if (holding || page.dataset.mode !== "hold" || $("talk").disabled) return;
  holding = true;
  microphone.muted = false;
  await openMicrophone();
  if (!holding) release();
}

function release() {
  if (!holding) return;
  holding = false;
  setTimeout(() => {
    if (!holding && page.dataset.mode === "hold") microphone.muted = true;
  }, RELEASE_MS);
  refresh();
}

function setMode(mode) {
  release();
  page.dataset.mode = mode;
  if (microphone.isOpen) microphone.muted = mode === "hold";
  else if (mode === "open") microphone.muted = false;
  refresh();
}

function onMicrophone() {
  avatar.muted = microphone.muted;
  refresh();
}

function onLevel({ detail: { level } }) {
  page.style.setProperty("--level", level.toFixed(3));
  $("meter").setAttribute("aria-valuenow", String(Math.round(level * 100)));
}

async function playFile(file) {
  stopPlaying();
  setSound(true);
  $("playing-name").textContent = file.name || "Pasted sound";
  $("playing").hidden = false;
  refresh();
  const mine = (playing = Symbol("playing"));
  try {
    await avatar.speak(file);
    forgetNote("file");
  } catch (error) {
    note(error, { about: "file" });
    if (mine === playing) stopPlaying();
  }
  sent = mine; // it is all on its way; `finished` comes when it was shown
}

let playing = null;
let sent = null;

function stopPlaying() {
  playing = null;
  $("playing").hidden = true;
  refresh();
}

function interrupt() {
  if ($("interrupt").disabled) return;
  stopPlaying();
  avatar.interrupt();
}

function setSound(on) {
  video.muted = !on;
  $("sound").setAttribute("aria-pressed", String(on));
  $("sound-label").textContent = on ? "Sound on" : "Sound off";
  if (on && video.srcObject) video.play().catch(() => {});
}

// ---- Files from outside: picked, dropped, pasted ----------------------------------------------

function take(file) {
  if (!file) return;
  if (file.type.startsWith("image/") || /\.(jpe?g|png|webp|heic|avif)$/i.test(file.name)) cast.offer(file);
  else if (/^(audio|video)\//.test(file.type) || /\.(wav|mp3|ogg|m4a|flac)$/i.test(file.name)) playFile(file);
  else say("Only pictures and sound files can be used here.");
}

function watchDrops() {
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  for (const kind of ["dragenter", "dragover"]) {
    addEventListener(kind, (event) => {
      if (!isFile(event)) return;
      event.preventDefault();
      page.dataset.drag = "";
    });
  }
  addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || delete page.dataset.drag);
  addEventListener("drop", (event) => {
    event.preventDefault();
    delete page.dataset.drag;
    take(event.dataTransfer?.files[0]);
  });
  addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
}

// ---- Wiring --------------------------------------------------------------------------------

function watchControls() {
  $("talk").addEventListener("click", toggleTalk);
  $("talk").addEventListener("pointerdown", ({ button }) => button === 0 && press());
  for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, release);
  addEventListener("blur", release);
  $("mode").addEventListener("change", ({ target }) => setMode(target.value));
  $("mute").addEventListener("click", () => (microphone.muted = !microphone.muted));
  $("interrupt").addEventListener("click", interrupt);
  $("playing-stop").addEventListener("click", interrupt);
  $("sound").addEventListener("click", () => setSound(video.muted));
  $("play").addEventListener("click", () => $("audio").click());
  $("audio").addEventListener("change", ({ target }) => {
    if (target.files[0]) playFile(target.files[0]);
    target.value = "";
  });
  $("note-close").addEventListener("click", () => forgetNote());
  $("retry").addEventListener("click", () => (avatar.state === "failed" ? connect() : start()));
  addEventListener("keydown", onKey);
  addEventListener("keyup", ({ key }) => key === " " && release());
}

function onKey(event) {
  if (event.key === "Escape" && !$("upload").open) return interrupt();
  const isTyping = event.target.matches("input, select, textarea, summary, button:not(#talk)");
  if (event.key === " " && page.dataset.mode === "hold" && !isTyping && !$("upload").open) {
    event.preventDefault();
    if (!event.repeat) press();
  }
}

function watchAvatar() {
  const on = (type, deed) => avatar.addEventListener(type, ({ detail }) => deed(detail));
  on("state", onState);
  on("speaking", () => {
    page.setAttribute("data-speaking", "");
    refresh();
  });
  on("idle", () => {
    page.removeAttribute("data-speaking");
    refresh();
  });
  on("finished", () => playing && playing === sent && stopPlaying());
  on("selected", ({ warnings }) => warnings.length && say(warnings.join(" ")));
  on("warning", warn);
  on("blocked", () => setSound(false));
  on("message", ({ type, disclosure }) => {
    if (type === "session.ready") page.toggleAttribute("data-badged", Boolean(disclosure?.badge));
  });
  video.addEventListener("playing", () => (page.dataset.video = ""));
}

function watchMicrophone(readout) {
  microphone.addEventListener("change", onMicrophone);
  microphone.addEventListener("level", onLevel);
  microphone.addEventListener("onset", ({ detail }) => readout.spoken(detail.atMs));
  microphone.addEventListener("silent", () => note({ code: "mic-silent" }, { mild: true, about: "microphone" }));
  microphone.addEventListener("lost", () => {
    note({ code: "mic-lost" }, { about: "microphone" });
    avatar.hush();
  });
}

function showAvatar(chosen) {
  $("still").src = api.address(chosen.still);
  $("still").alt = `Portrait of ${chosen.label}`;
  $("stage").style.setProperty("--shape", chosen.width / chosen.height);
  avatar.select(chosen.id ?? chosen.name);
}

// A reload goes on with its session; a copy of the tab must not take it away, so the note is
// written when the page is left and taken when it comes.
function keepSession() {
  addEventListener("pagehide", () => {
    const { session } = avatar.session ?? {};
    if (session) sessionStorage.setItem(KEPT_SESSION, JSON.stringify({ session, avatar: cast.chosen?.id }));
    avatar.close({ end: false });
  });
  addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
}

function keptSession() {
  const text = sessionStorage.getItem(KEPT_SESSION);
  sessionStorage.removeItem(KEPT_SESSION);
  return text ? JSON.parse(text) : {};
}

function connect() {
  avatar.connect().catch(() => {}); // `state` has told
}

async function start() {
  $("curtain").hidden = true;
  onState({ state: "connecting" });
  try {
    const config = await api.request("v1/config").catch(() => ({}));
    await cast.load(kept.avatar ?? query.get("avatar"), config.consent);
  } catch (error) {
    return onState({ state: "failed", error });
  }
  connect();
}

function prepare() {
  const badge = query.get("badge") === "off" ? false : undefined;
  avatar = new LetsTalkAvatar(video, { url: server, token, session: kept.session, badge });
  cast = new Cast(avatar.api);
  cast.addEventListener("choose", ({ detail }) => showAvatar(detail));
  const readout = new Readout(avatar, {
    bars: document.querySelector(".bars"),
    delay: $("delay"),
    list: $("figures"),
  });
  new OverlayControl(avatar);
  watchAvatar();
  watchMicrophone(readout);
  watchControls();
  watchDrops();
  keepSession();
  setSound(false);
  refresh();
  return start();
}

if (window.RTCPeerConnection) prepare();
else {
  page.dataset.state = "failed";
  $("status").textContent = "Not connected";
  $("curtain").hidden = false;
  $("retry").hidden = true;
  raiseCurtain({ code: "unsupported" });
}

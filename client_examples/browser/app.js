// The page: shows the avatar at once, and speaks with the visitor's voice on request.

import { Api } from "./api.js";
import { AvatarPicker } from "./avatar-picker.js";
import { CameraControl } from "./camera-control.js";
import { ConversationPanel } from "./conversation-panel.js";
import { explain } from "./error-messages.js";
import { LetsTalkAvatar, LetsTalkError } from "./letstalk.js";
import { LookControl } from "./look-control.js";
import { Microphone } from "./microphone.js";
import { OverlayControl } from "./overlay-control.js";
import { PerformanceControl } from "./performance-control.js";
import { StageBackground } from "./stage-background.js";
import { StatsPanel } from "./stats-panel.js";
import { TextBox } from "./text-box.js";
import { WaitingCard, knownSessions, rememberSession } from "./waiting-card.js";

const SESSION_KEY = "letstalk.session"; // in sessionStorage: survives a reload, not the tab
const WARNING_MS = 10_000;
const RELEASE_MS = 250; // people release the key before the end of the last word

const $ = (id) => document.getElementById(id);
const page = document.body;
const video = $("video");

const query = new URLSearchParams(location.search);
const link = new URLSearchParams(location.hash.slice(1)).get("token") ?? undefined;
const server = query.get("server") ?? undefined;
const saved = takeSavedSession();
// The link's token expires soon; the page goes on with the renewed one, unless the link is new.
const token = saved.link === link ? (saved.token ?? link) : link;

const api = new Api(server);
const microphone = new Microphone();
const textBox = new TextBox($("say"));
let avatar = null;
let picker = null;
let conversation = null;
let background = null;
let look = null;
let performing = null;
let camera = null;
let stats = null;
let isHolding = false; // the talk button or the space bar is held in push-to-talk
let isOpening = false; // the microphone
let isSaying = false; // a text was sent that is not heard yet

// ---- State of the connection -------------------------------------------------------------

const STATES = {
  new: ["Starting", ""],
  connecting: ["Connecting", "Waking up"],
  waiting: ["Waiting", ""],
  live: ["Live", ""],
  reconnecting: ["Reconnecting", "Reconnecting"],
  failed: ["Not connected", ""],
  closed: ["Ended", ""],
};

function onState({ state, error }) {
  page.dataset.state = state;
  $("status").textContent = STATES[state][0];
  if (state !== "live") {
    delete page.dataset.video; // show the portrait; the ended stream would be black
    page.removeAttribute("data-speaking");
    hidePlaying();
  }
  if (state === "live") rememberSession(avatar.session.session);
  if (state === "live" || state === "waiting") hideNotice("connection");
  $("failure").hidden = state !== "failed";
  if (state === "failed") showFailure(error);
  if (state === "reconnecting" && error?.code !== "connection-lost") {
    showNotice(error, { mild: true, about: "connection" });
  }
  refresh();
}

function showFailure(error) {
  const { title, text, action } = explain(error);
  $("failure-title").textContent = title;
  $("failure-text").textContent = text;
  $("retry").textContent = action;
  hideNotice("connection");
}

/** Update labels, and which controls can be used, after any change of state. */
function refresh() {
  const { state } = page.dataset;
  const isLive = state === "live";
  const isHold = page.dataset.mode === "hold";
  const mic = microphone.isOpen ? (microphone.muted ? "muted" : "on") : "off";
  page.dataset.mic = mic;
  $("talk").disabled = isOpening || state === "failed" || state === "waiting";
  $("talk-label").textContent = talkLabel(isHold, mic);
  $("mute").disabled = mic === "off" || isHold;
  const isMuted = mic === "muted" && !isHold;
  $("mute").toggleAttribute("data-on", isMuted);
  $("mute-label").textContent = isMuted ? "Unmute" : "Mute";
  $("interrupt").disabled = !isLive || !(avatar.speaking || isSaying || conversation.isBusy || !$("playing").hidden);
  textBox.live = isLive;
  page.dataset.purpose = conversation?.isOn ? "with" : "through";
  textBox.purpose = page.dataset.purpose;
  $("play-file").disabled = !isLive || page.dataset.purpose === "with";
  $("caption-text").textContent = caption(state, isHold, mic);
  $("caption-delay").textContent = captionDelay(mic);
  $("hint").textContent = isHold
    ? "Hold the button or the space bar while you speak."
    : "It sounds best with headphones.";
}

function talkLabel(isHold, mic) {
  if (isHold) return isHolding ? "Listening" : "Hold to talk";
  return { off: "Start talking", on: "Stop talking", muted: "Muted" }[mic];
}

function caption(state, isHold, mic) {
  if (state !== "live") return STATES[state][1];
  if (conversation.doing) return conversation.doing;
  if (avatar.speaking) return "Speaking";
  return mic === "on" ? "Listening" : "";
}

/** How late the avatar speaks, while it does; it is measured with the visitor's voice or text. */
function captionDelay(mic) {
  if (!avatar?.speaking || page.dataset.purpose === "with" || !$("playing").hidden) return "";
  const { textMs, voiceMs } = stats;
  if (textMs !== null) return `${textMs} ms after the text`;
  return mic === "on" && voiceMs !== null ? `${voiceMs} ms behind you` : "";
}

// ---- Notices -------------------------------------------------------------------------------

function showNotice(error, { mild = false, about = "" } = {}) {
  const { title, text } = explain(error);
  $("notice-title").textContent = title;
  $("notice-text").textContent = text;
  $("notice").toggleAttribute("data-mild", mild);
  $("notice").dataset.about = about;
  $("notice").hidden = false;
}

function hideNotice(about) {
  if (about === undefined || $("notice").dataset.about === about) $("notice").hidden = true;
}

const showMessage = (message) => showNotice(new LetsTalkError("", message), { mild: true });

let warningTimer = 0;

function onWarning({ code, message }) {
  if (code === "bad-message") return; // a bug of this page; the visitor cannot help it
  if (code === "recording-failed") showRecorded({ recorded: false });
  setSaying(false);
  showNotice({ code, message }, { mild: true, about: "server" });
  clearTimeout(warningTimer);
  warningTimer = setTimeout(() => hideNotice("server"), WARNING_MS);
}

/** Say whether the server records what is shown and said, before anything is said. */
function showRecorded(disclosure) {
  const chip = $("recorded");
  const isRecorded = Boolean(disclosure?.recorded);
  if (!isRecorded && chip.hidden) return;
  chip.hidden = false;
  chip.toggleAttribute("data-failed", !isRecorded);
  const text = disclosure?.signed ? "Recorded, signed" : "Recorded";
  chip.textContent = isRecorded ? text : "Not recorded any more";
}

// ---- Microphone ----------------------------------------------------------------------------

async function openMicrophone() {
  if (isOpening || microphone.isOpen) return;
  isOpening = true;
  refresh();
  setAudioOn(true); // this press is the user gesture that browsers require before playing audio
  try {
    await microphone.open();
    await avatar.speak(microphone.stream);
    hideNotice("microphone");
  } catch (error) {
    showNotice(error, { about: "microphone" });
  }
  isOpening = false;
  refresh();
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
  if (isHolding || page.dataset.mode !== "hold" || $("talk").disabled) return;
  isHolding = true;
  microphone.muted = false;
  await openMicrophone();
  if (!isHolding) release();
}

function release() {
  if (!isHolding) return;
  isHolding = false;
  setTimeout(() => {
    if (!isHolding && page.dataset.mode === "hold") microphone.muted = true;
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

function onMicrophoneChange() {
  avatar.muted = microphone.muted;
  refresh();
}

function onLevel({ detail: { level } }) {
  page.style.setProperty("--level", level.toFixed(3));
}

// ---- Audio files ---------------------------------------------------------------------------

let playing = null; // identifies the file that the avatar speaks
let sent = null; // the last file that was sent completely

async function playFile(file) {
  hidePlaying();
  setAudioOn(true);
  $("playing-name").textContent = file.name || "Pasted audio";
  $("playing").hidden = false;
  refresh();
  const current = (playing = Symbol("playing"));
  try {
    await avatar.speak(file);
    hideNotice("file");
  } catch (error) {
    showNotice(error, { about: "file" });
    if (current === playing) hidePlaying();
  }
  sent = current; // all of it is sent; the `finished` event follows when it was played
}

function hidePlaying() {
  playing = null;
  $("playing").hidden = true;
  refresh();
}

/** Let the avatar speak a text. It can be interrupted at once, before anything is heard. */
function say(text) {
  setAudioOn(true); // this press is the user gesture that browsers require before playing audio
  try {
    if (conversation.isOn) return avatar.tell(text);
    avatar.say(text, { voice: look.voice });
    stats.onText(performance.now());
    setSaying(true);
  } catch (error) {
    textBox.restore(text);
    showNotice(error, { mild: true, about: "server" });
  }
}

function setSaying(on) {
  isSaying = on;
  refresh();
}

function interrupt() {
  if ($("interrupt").disabled) return;
  setSaying(false);
  hidePlaying();
  avatar.interrupt();
}

function setAudioOn(on) {
  video.muted = !on;
  $("audio-toggle").toggleAttribute("data-on", on);
  $("audio-toggle-label").textContent = on ? "Sound on" : "Sound off";
  if (on && video.srcObject) video.play().catch(() => {});
}

// ---- Dropped and pasted files ----------------------------------------------------------------

function openFile(file) {
  if (!file) return;
  const isImage = file.type.startsWith("image/") || /\.(jpe?g|png|webp|heic|avif)$/i.test(file.name);
  const isAudio = /^(audio|video)\//.test(file.type) || /\.(wav|mp3|ogg|m4a|flac)$/i.test(file.name);
  if (isImage) picker.openUpload(file);
  else if (isAudio) playFile(file);
  else showMessage("Only images and audio files can be used here.");
}

function watchDrops() {
  const hasFile = (event) => event.dataTransfer?.types.includes("Files");
  for (const type of ["dragenter", "dragover"]) {
    addEventListener(type, (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      page.dataset.drag = "";
    });
  }
  addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || delete page.dataset.drag);
  addEventListener("drop", (event) => {
    event.preventDefault();
    delete page.dataset.drag;
    openFile(event.dataTransfer?.files[0]);
  });
  addEventListener("paste", (event) => openFile(event.clipboardData?.files[0]));
}

// ---- Event handlers --------------------------------------------------------------------------

function watchControls() {
  $("talk").addEventListener("click", toggleTalk);
  $("talk").addEventListener("pointerdown", ({ button }) => button === 0 && press());
  for (const type of ["pointerup", "pointercancel"]) addEventListener(type, release);
  addEventListener("blur", release);
  $("mode").addEventListener("change", ({ target }) => setMode(target.value));
  $("mute").addEventListener("click", () => (microphone.muted = !microphone.muted));
  $("interrupt").addEventListener("click", interrupt);
  textBox.addEventListener("say", ({ detail }) => say(detail));
  $("playing-stop").addEventListener("click", interrupt);
  $("audio-toggle").addEventListener("click", () => setAudioOn(video.muted));
  $("play-file").addEventListener("click", () => $("audio-file").click());
  $("audio-file").addEventListener("change", ({ target }) => {
    if (target.files[0]) playFile(target.files[0]);
    target.value = "";
  });
  $("notice-close").addEventListener("click", () => hideNotice());
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
  const on = (type, handler) => avatar.addEventListener(type, ({ detail }) => handler(detail));
  on("state", onState);
  on("speaking", () => {
    page.setAttribute("data-speaking", "");
    setSaying(false);
  });
  on("idle", () => {
    page.removeAttribute("data-speaking");
    refresh();
  });
  on("finished", () => playing && playing === sent && hidePlaying());
  on("selected", ({ warnings }) => warnings.length && showMessage(warnings.join(" ")));
  on("warning", onWarning);
  on("forgotten", ({ avatar: id }) => picker.forget(id));
  on("blocked", () => setAudioOn(false));
  on("message", ({ type, disclosure }) => {
    if (type !== "session.ready") return;
    page.toggleAttribute("data-badged", Boolean(disclosure?.badge));
    showRecorded(disclosure);
  });
  video.addEventListener("playing", () => (page.dataset.video = ""));
}

function watchMicrophone() {
  microphone.addEventListener("change", onMicrophoneChange);
  microphone.addEventListener("level", onLevel);
  microphone.addEventListener("onset", ({ detail }) => stats.onSpeechStart(detail.atMs));
  microphone.addEventListener("silent", () => {
    showNotice({ code: "mic-silent" }, { mild: true, about: "microphone" });
  });
  microphone.addEventListener("lost", () => {
    showNotice({ code: "mic-lost" }, { about: "microphone" });
    avatar.hush();
  });
}

function showAvatar(chosen) {
  $("still").src = api.url(chosen.still);
  $("still").alt = `Portrait of ${chosen.label}`;
  $("stage").style.setProperty("--aspect", chosen.width / chosen.height);
  background.show(chosen);
  avatar.select(chosen.id);
}

// ---- Start and reload ------------------------------------------------------------------------

// A reload resumes its session with the renewed token. They are saved when the page is left and
// removed when it is loaded, because a duplicated tab copies the storage and must not take over the
// session.
function saveSessionOnLeave() {
  addEventListener("pagehide", () => {
    const { session } = avatar.session ?? {};
    const chosen = session && picker.chosen?.id;
    const state = { session, avatar: chosen, link, token: avatar.api.latestToken };
    sessionStorage.setItem(SESSION_KEY, JSON.stringify(state));
    avatar.close({ end: false });
  });
  addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
}

function takeSavedSession() {
  const text = sessionStorage.getItem(SESSION_KEY);
  sessionStorage.removeItem(SESSION_KEY);
  return text ? JSON.parse(text) : {};
}

function connect() {
  avatar.connect().catch(() => {}); // the `state` event has reported the error
}

/** Go on with a session of one's own, and with its avatar. */
function takeOver({ session, avatar: id }) {
  picker.chooseById(id);
  avatar.takeOver(session, id).catch(() => {}); // as above
}

async function start() {
  $("failure").hidden = true;
  onState({ state: "connecting" });
  try {
    const config = await api.request("v1/config").catch(() => ({}));
    textBox.configure(config.speech);
    look.configure(config.speech);
    conversation.configure(config.conversation);
    performing.configure(config.performance, config.conversation);
    camera.configure(config.performance);
    showRecorded(config.disclosure);
    await picker.load(saved.avatar ?? query.get("avatar"), config);
  } catch (error) {
    return onState({ state: "failed", error });
  }
  connect();
}

function setUp() {
  const badge = query.get("badge") === "off" ? false : undefined;
  avatar = new LetsTalkAvatar(video, { url: server, token, session: saved.session, badge, camera: true, known: knownSessions });
  picker = new AvatarPicker(avatar.api);
  picker.addEventListener("choose", ({ detail }) => showAvatar(detail));
  picker.addEventListener("removed", () => hideNotice("avatar"));
  picker.addEventListener("failed", ({ detail }) => showNotice(detail, { about: "avatar" }));
  const parts = { bars: document.querySelector(".bars"), delay: $("delay"), list: $("stats") };
  stats = new StatsPanel(avatar, parts);
  stats.addEventListener("change", refresh);
  look = new LookControl(avatar, video);
  background = new StageBackground(avatar.api, video);
  new OverlayControl(avatar);
  new WaitingCard(avatar).addEventListener("take-over", ({ detail }) => takeOver(detail));
  conversation = new ConversationPanel(avatar, {
    purpose: $("purpose"),
    panel: $("conversation"),
    captions: $("captions"),
    transcript: $("transcript"),
    voice: $("conversation-voice"),
    prompt: $("conversation-prompt"),
    notes: $("conversation-notes"),
    hint: $("purpose-hint"),
  });
  conversation.addEventListener("change", refresh);
  watchAvatar();
  watchMicrophone();
  performing = new PerformanceControl(avatar);
  camera = new CameraControl(avatar, { show: showNotice, hide: hideNotice });
  watchControls();
  watchDrops();
  saveSessionOnLeave();
  setAudioOn(false);
  refresh();
  return start();
}

if (window.RTCPeerConnection) setUp();
else {
  page.dataset.state = "failed";
  $("status").textContent = STATES.failed[0];
  $("failure").hidden = false;
  $("retry").hidden = true;
  showFailure({ code: "unsupported" });
}

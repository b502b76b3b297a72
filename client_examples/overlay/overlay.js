// The avatar alone, for OBS: watches a session and removes the background.

import { drawBackground } from "../browser/background.js";
import { Cutout } from "../browser/cutout.js";
import { explain } from "../browser/error-messages.js";
import { LetsTalkAvatar } from "../browser/letstalk.js";
import { placeBadge } from "./badge.js";
import { DEFAULTS, apply, merge, showsBlur, showsScene } from "./settings.js";

const FIND_MS = 600; // time for another page of this browser to answer with its session
const FAILURE_MS = 4000; // shorter failures are not shown on stream

const $ = (id) => document.getElementById(id);
const page = document.body;
const query = new URLSearchParams(location.search);
const fragment = new URLSearchParams(location.hash.slice(1));
const urlSettings = merge(DEFAULTS, Object.fromEntries(query));

let settings = urlSettings;
let avatar = null;
let cutout = null;
let shownId = null; // of the avatar whose still portrait and matte are loaded
let badge = query.get("badge") !== "off";
let hasBackdrop = false; // the blurred background is drawn
let failureTimer = 0;

function applySettings(changes = {}) {
  settings = merge(urlSettings, changes);
  apply(settings, page);
  $("name").textContent = settings.name;
  $("name").hidden = !settings.name;
  refresh();
}

function refresh() {
  const isScene = showsScene(settings);
  page.toggleAttribute("data-plain", isScene || !cutout);
  page.toggleAttribute("data-blurred", showsBlur(settings) && hasBackdrop);
  placeBadge($("badge"), $("frame"), badge, settings.shape);
}

async function showAvatar(id) {
  if (!id || id === shownId) return;
  shownId = id;
  const [still, matte] = await Promise.all([loadImage(id, "still.jpg"), loadImage(id, "matte.png")]);
  if (id !== shownId) return;
  if (still) page.style.setProperty("--aspect", still.naturalWidth / still.naturalHeight);
  cutout?.show(still, still && matte);
  hasBackdrop = Boolean(still && matte);
  if (hasBackdrop) drawBackground($("backdrop"), still, matte);
  refresh();
  page.dataset.avatar = id;
}

async function loadImage(id, name) {
  const image = new Image();
  image.crossOrigin = "anonymous";
  image.src = avatar.api.url(`v1/avatars/${encodeURIComponent(id)}/${name}`);
  return image.decode().then(
    () => image,
    () => null,
  );
}

function onState({ state, error }) {
  page.dataset.state = state;
  if (state !== "live") delete page.dataset.video;
  clearTimeout(failureTimer);
  if (state === "live") $("failure").hidden = true;
  else if (error) failureTimer = setTimeout(() => showFailure(error), FAILURE_MS);
  refresh();
}

function showFailure(error) {
  const { title, text } = explain(error);
  $("failure").textContent = `${title} ${text}`;
  $("failure").hidden = query.get("quiet") === "on";
}

function onMessage(message) {
  if (message.type === "session.ready") {
    badge = message.disclosure?.badge ?? badge;
    showAvatar(message.images);
  }
  if (message.type === "avatar.selected") showAvatar(message.images);
}

/** Find the session to watch: in the URL, else that of another page in this browser. */
function findSession() {
  const given = { session: query.get("session"), token: fragment.get("token") };
  if (given.session) return given;
  return new Promise((resolve) => {
    const channel = new BroadcastChannel("letstalk");
    const finish = (found) => {
      channel.close();
      resolve(found);
    };
    channel.onmessage = ({ data }) => data?.type === "session" && finish(data);
    channel.postMessage({ type: "find-session" });
    setTimeout(() => finish({ session: null, token: fragment.get("token") }), FIND_MS);
  });
}

async function start() {
  try {
    cutout = new Cutout($("cutout"), $("video"));
  } catch {
    cutout = null; // without WebGL the video keeps its background
  }
  applySettings();
  new ResizeObserver(refresh).observe($("frame"));
  addEventListener("resize", refresh);
  const { session, token } = await findSession();
  avatar = new LetsTalkAvatar($("video"), {
    url: query.get("server") ?? undefined,
    token: token ?? undefined,
    session: session ?? undefined,
    avatar: query.get("avatar") ?? undefined,
    badge: badge ? undefined : false,
    watch: true,
    reconnect: "always",
  });
  $("video").muted = query.get("sound") === "off";
  avatar.addEventListener("state", ({ detail }) => onState(detail));
  avatar.addEventListener("message", ({ detail }) => onMessage(detail));
  avatar.addEventListener("overlay", ({ detail }) => applySettings(detail));
  $("video").addEventListener("playing", () => {
    page.dataset.video = "";
    refresh();
  });
  showAvatar(query.get("avatar"));
  avatar.connect().catch(() => {}); // the `state` event has reported the error
}

start();

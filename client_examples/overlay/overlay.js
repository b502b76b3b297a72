// The avatar alone, for OBS: watches a session, takes its background away, obeys another page.

import { LetsTalkAvatar } from "../browser/letstalk.js";
import { explain } from "../browser/error-messages.js";
import { Cutout } from "./cutout.js";
import { DEFAULTS, apply, merge, showsScene } from "./settings.js";

const ASK_MS = 600; // how long another page of this browser may take to name its session
const PATIENCE_MS = 4000; // trouble shorter than this is not shown on air

const $ = (id) => document.getElementById(id);
const page = document.body;
const query = new URLSearchParams(location.search);
const fragment = new URLSearchParams(location.hash.slice(1));
const fromAddress = merge(DEFAULTS, Object.fromEntries(query));

let settings = fromAddress;
let avatar = null;
let cutout = null;
let shown = null; // id of the avatar whose still and matte are loaded
let badge = query.get("badge") !== "off";
let troubleTimer = 0;

function look(changes = {}) {
  settings = merge(fromAddress, changes);
  apply(settings, page);
  $("name").textContent = settings.name;
  $("name").hidden = !settings.name;
  refresh();
}

function refresh() {
  const isScene = showsScene(settings);
  page.toggleAttribute("data-plain", isScene || !cutout);
  // The server's badge is in the picture's corner, which goes with the background.
  $("badge").hidden = !badge || (isScene && page.dataset.video !== undefined);
}

async function showAvatar(id) {
  if (!id || id === shown) return;
  shown = id;
  const [still, matte] = await Promise.all([picture(id, "still.jpg"), picture(id, "matte.png")]);
  if (id !== shown) return;
  if (still) page.style.setProperty("--aspect", still.naturalWidth / still.naturalHeight);
  cutout?.show(still, still && matte);
  page.dataset.avatar = id;
}

async function picture(id, name) {
  const image = new Image();
  image.crossOrigin = "anonymous";
  image.src = avatar.api.address(`v1/avatars/${encodeURIComponent(id)}/${name}`);
  return image.decode().then(
    () => image,
    () => null,
  );
}

function onState({ state, error }) {
  page.dataset.state = state;
  if (state !== "live") delete page.dataset.video;
  clearTimeout(troubleTimer);
  if (state === "live") $("trouble").hidden = true;
  else if (error) troubleTimer = setTimeout(() => complain(error), PATIENCE_MS);
  refresh();
}

function complain(error) {
  const { title, text } = explain(error);
  $("trouble").textContent = `${title} ${text}`;
  $("trouble").hidden = query.get("quiet") === "on";
}

function onMessage(message) {
  if (message.type === "session.ready") {
    badge = message.disclosure?.badge ?? badge;
    showAvatar(message.avatar);
  }
  if (message.type === "avatar.selected") showAvatar(message.avatar);
}

/** Find the session to watch: of the address, else of a page that is open beside this one. */
function findSession() {
  const named = { session: query.get("session"), token: fragment.get("token") };
  if (named.session) return named;
  return new Promise((resolve) => {
    const channel = new BroadcastChannel("letstalk");
    const give = (found) => {
      channel.close();
      resolve(found);
    };
    channel.onmessage = ({ data }) => data?.type === "session" && give(data);
    channel.postMessage({ type: "who" });
    setTimeout(() => give({ session: null, token: fragment.get("token") }), ASK_MS);
  });
}

async function start() {
  try {
    cutout = new Cutout($("cutout"), $("video"));
  } catch {
    cutout = null; // the picture is then shown as it is
  }
  look();
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
  avatar.addEventListener("overlay", ({ detail }) => look(detail));
  $("video").addEventListener("playing", () => {
    page.dataset.video = "";
    refresh();
  });
  showAvatar(query.get("avatar"));
  avatar.connect().catch(() => {}); // `state` has told
}

start();

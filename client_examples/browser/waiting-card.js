// What a visitor of a full server sees: who holds the places, the queue, and "Take over".

import { readSaved, save } from "./saved-choices.js";

const KEY = "letstalk.sessions"; // in localStorage: all tabs of this browser know their sessions
const MOST_KNOWN = 8;

const $ = (id) => document.getElementById(id);

/** Return the ids of the latest sessions of this browser. */
export function knownSessions() {
  const ids = readSaved(KEY, []);
  return Array.isArray(ids) ? ids.filter((id) => typeof id === "string").slice(0, MOST_KNOWN) : [];
}

/** Remember that this browser has opened a session. */
export function rememberSession(id) {
  const ids = [id, ...knownSessions().filter((other) => other !== id)];
  save(KEY, ids.slice(0, MOST_KNOWN));
}

/** Shows how the page stands in the queue. Event: `take-over` with one of the own sessions. */
export class WaitingCard extends EventTarget {
  #own = null; // the session to take over

  /** @param {LetsTalkAvatar} avatar */
  constructor(avatar) {
    super();
    avatar.addEventListener("queue", ({ detail }) => this.#show(detail));
    avatar.addEventListener("state", ({ detail }) => ($("waiting").hidden = detail.state !== "waiting"));
    $("take-over").addEventListener("click", () => {
      this.dispatchEvent(new CustomEvent("take-over", { detail: this.#own }));
    });
  }

  #show(standing) {
    const { own, places, taken, position } = standing;
    this.#own = own.find(isTab) ?? own[0];
    setText("waiting-title", `In use: ${taken} of ${places} places`);
    setText("waiting-holders", holders(standing));
    setText("waiting-queue", `${queueText(position, own)} This page starts by itself.`);
    $("take-over").hidden = $("take-over-hint").hidden = !this.#own;
    if (this.#own) setText("take-over-hint", takeOverText(this.#own));
  }
}

const isTab = ({ kinds }) => kinds.includes("talk");
const isOverlay = ({ kinds }) => kinds.every((kind) => kind === "play");

/** Set a text that screen readers read, unless it is the same. */
function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function holders({ own, taken }) {
  const names = own.map(ownName);
  const others = taken - own.length;
  if (others > 0) names.push(others > 1 ? `${others} other people` : "somebody else");
  if (!names.length) return "The server is busy.";
  return `Held by ${new Intl.ListFormat("en").format(names)}.`;
}

function ownName(session) {
  if (isOverlay(session)) return "your overlay";
  if (!isTab(session)) return "a program of yours";
  return knownSessions().includes(session.session) ? "your other tab" : "you, in another browser";
}

function queueText(position, own) {
  if (position === 1) return "You are next.";
  if (position) return `You are number ${position} in the queue.`;
  return own.length ? "You are next when that ends." : "Others wait, too.";
}

function takeOverText(session) {
  if (isOverlay(session)) return "The overlay goes on, and this page speaks for it.";
  return isTab(session) ? "The avatar then goes on here, and stops there." : "The avatar then goes on here.";
}

// The section "Mood and gestures": how the avatar feels, what it does, and how it listens.

import { readSaved, save } from "./saved-choices.js";

const LISTENING_KEY = "letstalk.listening";
const KEYS = 9; // the first gestures are made by the keys 1 to 9

const $ = (id) => document.getElementById(id);

/** A row of moods, buttons for gestures, and how the avatar listens in a conversation. */
export class PerformanceControl {
  #avatar;
  #gestures = [];

  /** @param {LetsTalkAvatar} avatar */
  constructor(avatar) {
    this.#avatar = avatar;
    $("moods").addEventListener("change", ({ target }) => avatar.setMood(target.value));
    $("gestures").addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (button) avatar.gesture(button.value);
    });
    $("listening").addEventListener("change", ({ target }) => {
      save(LISTENING_KEY, target.value);
      avatar.setListening(target.value);
    });
    avatar.addEventListener("performance", ({ detail }) => this.#show(detail));
    avatar.addEventListener("state", () => this.#refresh());
    addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** Take `performance` and `conversation` of the server's configuration. */
  configure({ available = false, moods = [], gestures = [], listening = [] } = {}, conversation = {}) {
    $("performance").hidden = !available;
    this.#gestures = available ? gestures : [];
    fill($("moods"), moods.map((name) => choice("mood", name)));
    fill($("gestures"), this.#gestures.map(gestureButton));
    fill($("listening"), listening.map((name) => choice("listening", name)));
    $("listening-field").hidden = !conversation.available;
    this.#show({ mood: "neutral", listening: "off" });
    const saved = readSaved(LISTENING_KEY, "attentive");
    // The session begins with it; in a conversation people expect to be listened to.
    if (available && conversation.available && listening.includes(saved)) this.#avatar.setListening(saved);
    this.#refresh();
  }

  #show({ mood, listening }) {
    for (const input of $("moods").querySelectorAll("input")) input.checked = input.value === mood;
    for (const input of $("listening").querySelectorAll("input")) input.checked = input.value === listening;
  }

  #refresh() {
    const isLive = this.#avatar.state === "live";
    for (const field of [$("moods"), $("gestures"), $("listening")]) field.disabled = !isLive;
  }

  #onKey(event) {
    const gesture = this.#gestures[Number(event.key) - 1];
    const isShortcut = /^[1-9]$/.test(event.key) && !(event.ctrlKey || event.altKey || event.metaKey);
    const isTyping = event.target.matches("textarea, select, [contenteditable]") ||
      (event.target.matches("input") && !["radio", "checkbox"].includes(event.target.type));
    if (!gesture || !isShortcut || isTyping || event.repeat || $("upload").open) return;
    if (this.#avatar.state !== "live") return;
    event.preventDefault();
    this.#avatar.gesture(gesture);
    flash($("gestures").querySelector(`[value="${CSS.escape(gesture)}"]`));
  }
}

/** Put items into a field set, after its legend. */
function fill(fieldset, items) {
  fieldset.replaceChildren(fieldset.querySelector("legend"), ...items);
}

/** A name such as `raise_brows` for people. */
const label = (name) => (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");

function choice(group, name) {
  const [outer, text, input] = ["label", "span", "input"].map((tag) => document.createElement(tag));
  Object.assign(input, { type: "radio", name: group, value: name });
  text.textContent = label(name);
  outer.append(input, text);
  return outer;
}

function gestureButton(name, index) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", value: name, textContent: label(name) });
  if (index < KEYS) {
    const key = document.createElement("kbd");
    key.textContent = index + 1;
    key.setAttribute("aria-hidden", "true");
    button.prepend(key);
    button.setAttribute("aria-keyshortcuts", index + 1);
  }
  return button;
}

/** Show on its button that a key has made a gesture. */
function flash(button) {
  button.toggleAttribute("data-made", true);
  setTimeout(() => button.removeAttribute("data-made"), 300);
}

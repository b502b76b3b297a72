// The list of avatars to choose from, with a button to add one.

import { UploadDialog } from "./upload-dialog.js";

const PLACEHOLDERS = 4; // shown while the list is loading

const $ = (id) => document.getElementById(id);

/**
 * Shows the avatars of the server.
 *
 * Events: `choose` with an avatar of the server's list; `removed`, or `failed` with an error, when
 * the server has answered to a removal; also `failed`, when a new name was refused.
 */
export class AvatarPicker extends EventTarget {
  #api;
  #avatars = [];
  #chosen = null;
  #upload;

  constructor(api) {
    super();
    this.#api = api;
    this.#upload = new UploadDialog(api, {
      labels: () => this.#avatars.map(({ label }) => label),
      onDone: (avatar) => this.#add(avatar),
    });
    $("avatar-name").addEventListener("change", ({ target }) => this.#rename(target.value.trim()));
    $("avatars").append(...Array.from({ length: PLACEHOLDERS }, placeholder));
  }

  get chosen() {
    return this.#chosen;
  }

  /** Load the list and choose the avatar with this id, or the first; `config` is the server's. */
  async load(id, config) {
    const { avatars, max_upload_bytes } = await this.#api.request(this.#api.avatarsPath());
    this.#avatars = avatars;
    this.#upload.configure(config, max_upload_bytes);
    this.choose(avatars.find((avatar) => avatar.id === id) ?? avatars[0]);
  }

  choose(avatar) {
    this.#chosen = avatar;
    this.#render();
    this.dispatchEvent(new CustomEvent("choose", { detail: avatar }));
  }

  /** Choose the avatar with this id, if it is in the list. */
  chooseById(id) {
    const avatar = this.#avatars.find((each) => each.id === id);
    if (avatar) this.choose(avatar);
  }

  /** Open the dialog that makes an avatar from an image file; without a file, it asks for one. */
  openUpload(file = null) {
    this.#upload.open(file);
  }

  #add(avatar) {
    this.#avatars.push(avatar);
    this.choose(avatar);
    $("avatars").querySelector("input:checked").focus(); // the dialog has closed
  }

  /** Remove an avatar that the server no longer has. */
  forget(id) {
    this.#drop(this.#avatars.find((avatar) => avatar.id === id));
  }

  #drop(avatar) {
    this.#avatars = this.#avatars.filter((other) => other !== avatar);
    if (this.#chosen === avatar) this.choose(this.#avatars[0]);
    else this.#render();
  }

  async #rename(label) {
    const avatar = this.#chosen;
    const before = avatar.label;
    if (!label || label === before) return this.#render();
    avatar.label = label;
    this.#render();
    const headers = { "content-type": "application/json" };
    const body = JSON.stringify({ label });
    try {
      await this.#api.request(`v1/avatars/${avatar.id}`, { method: "PATCH", headers, body });
    } catch {
      avatar.label = before;
      this.#render();
      this.dispatchEvent(new CustomEvent("failed", { detail: { code: "not-renamed" } }));
    }
  }

  async #remove(avatar) {
    const place = this.#avatars.indexOf(avatar);
    this.#drop(avatar);
    try {
      await this.#api.request(`v1/avatars/${avatar.id}`, { method: "DELETE" });
    } catch (error) {
      if (error.code !== "unknown-avatar") return this.#putBack(avatar, place);
    }
    this.dispatchEvent(new Event("removed"));
  }

  #putBack(avatar, place) {
    this.#avatars.splice(place, 0, avatar);
    this.#render();
    this.dispatchEvent(new CustomEvent("failed", { detail: { code: "not-removed" } }));
  }

  #render() {
    const list = $("avatars");
    const hadFocus = list.querySelector("input:focus"); // which the new elements must not lose
    const cards = this.#avatars.map((avatar) => this.#card(avatar));
    list.replaceChildren(list.firstElementChild, ...cards, this.#addButton());
    if (hadFocus) list.querySelector("input:checked")?.focus();
    $("avatar-name-field").hidden = this.#chosen?.default !== false;
    $("avatar-name").value = this.#chosen?.label ?? "";
  }

  #card(avatar) {
    const image = element("img", { src: this.#api.url(avatar.thumbnail), alt: "" });
    const label = element("span", { className: "label", textContent: avatar.label });
    const radio = element("input", { type: "radio", name: "avatar" });
    radio.checked = avatar === this.#chosen;
    radio.addEventListener("change", () => this.choose(avatar));
    const card = element("label", { className: "avatar" }, radio, element("span", {}, image, label));
    if (avatar.default !== false) return card;
    return element("div", { className: "own-avatar" }, card, this.#removeButton(avatar));
  }

  #removeButton(avatar) {
    const button = element("button", { type: "button", className: "remove" });
    button.innerHTML = '<svg><use href="#i-close" /></svg>';
    button.setAttribute("aria-label", `Remove ${avatar.label}`);
    button.addEventListener("click", () => this.#remove(avatar));
    return button;
  }

  #addButton() {
    const button = element("button", { type: "button", className: "avatar", id: "add" });
    button.innerHTML = '<span class="add"><svg><use href="#i-plus" /></svg></span><span class="label">Add yours</span>';
    button.addEventListener("click", () => this.openUpload());
    return button;
  }
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function placeholder() {
  const body = element("span", {}, element("span", { className: "add" }), "\u00a0");
  return element("span", { className: "avatar placeholder" }, body);
}

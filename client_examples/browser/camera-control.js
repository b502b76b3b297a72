// The section "Camera": whether it moves the avatar or is only watched by it, what moves the lips,
// and a word when no face is seen.

import { Camera } from "./camera.js";
import { explain } from "./error-messages.js";

const UNSEEN_MS = 2000; // who turns away for a moment is not told

const $ = (id) => document.getElementById(id);

/** Lets the visitor's camera move the avatar. */
export class CameraControl {
  #avatar;
  #notices;
  #camera = new Camera($("mirror"));
  #role = "drive";
  #timer = 0;
  #hint = $("camera-hint").textContent;

  /**
   * @param {LetsTalkAvatar} avatar
   * @param {{show: function, hide: function}} notices of the page.
   */
  constructor(avatar, notices) {
    this.#avatar = avatar;
    this.#notices = notices;
    avatar.addEventListener("camera", ({ detail }) => this.#onStatus(detail.status));
    this.#camera.addEventListener("change", () => this.#onChange());
    this.#camera.addEventListener("lost", () => {
      notices.show({ code: "camera-lost" }, { mild: true, about: "camera" });
      avatar.move(null);
    });
    for (const id of ["camera-switch", "camera-watch"]) {
      $(id).addEventListener("change", ({ target }) => this.#switch(target));
    }
    $("camera-lips").addEventListener("change", () => this.#move());
    $("camera-neutral").addEventListener("click", () => avatar.takeNeutral());
  }

  /** Take `performance` of the server's configuration: whether the avatar can answer a face. */
  configure({ available = false } = {}) {
    $("camera-watch-label").hidden = !available;
  }

  /** Switch the camera on or off; one of both switches at most is on. */
  async #switch({ id, checked }) {
    if (checked) this.#role = ROLES[id];
    for (const other of Object.keys(ROLES)) if (other !== id) $(other).checked = false;
    try {
      if (checked) await this.#camera.open();
      else this.#camera.close();
      await this.#move();
      this.#notices.hide("camera");
    } catch (error) {
      this.#camera.close();
      this.#onChange(); // a camera that was never open has not changed, but the switch has
      this.#notices.show(error, { about: "camera" });
    }
  }

  #move() {
    return this.#avatar.move(this.#camera.stream, { lips: $("camera-lips").value, role: this.#role });
  }

  #onChange() {
    const { isOpen } = this.#camera;
    for (const [id, role] of Object.entries(ROLES)) $(id).checked = isOpen && role === this.#role;
    $("mirror").hidden = !isOpen;
    $("camera-fields").hidden = !isOpen || this.#role === "watch";
    if (!isOpen) this.#onStatus("");
  }

  #onStatus(status) {
    clearTimeout(this.#timer);
    const code = UNSEEN[status];
    if (code) this.#timer = setTimeout(() => this.#tell(code), UNSEEN_MS);
    else {
      this.#notices.hide("camera-face");
      $("camera-hint").textContent = this.#hint;
    }
  }

  // On a phone the notice may be out of sight for who has just switched the camera on.
  #tell(code) {
    const { title, text } = explain({ code });
    this.#notices.show({ code }, { mild: true, about: "camera-face" });
    $("camera-hint").textContent = `${title} ${text}`;
  }
}

const ROLES = { "camera-switch": "drive", "camera-watch": "watch" };
const UNSEEN = { "no-face": "camera-no-face", "several-faces": "camera-several-faces" };

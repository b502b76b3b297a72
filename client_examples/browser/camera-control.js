// The section "Camera": the switch, what moves the lips, and a word when no face is seen.

import { Camera } from "./camera.js";
import { explain } from "./error-messages.js";

const UNSEEN_MS = 2000; // who turns away for a moment is not told

const $ = (id) => document.getElementById(id);

/** Lets the visitor's camera move the avatar. */
export class CameraControl {
  #avatar;
  #notices;
  #camera = new Camera($("mirror"));
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
    $("camera-switch").addEventListener("change", ({ target }) => this.#switch(target.checked));
    $("camera-lips").addEventListener("change", () => this.#move());
    $("camera-neutral").addEventListener("click", () => avatar.takeNeutral());
  }

  async #switch(on) {
    try {
      if (on) await this.#camera.open();
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
    return this.#avatar.move(this.#camera.stream, { lips: $("camera-lips").value });
  }

  #onChange() {
    const { isOpen } = this.#camera;
    $("camera-switch").checked = isOpen;
    $("mirror").hidden = $("camera-fields").hidden = !isOpen;
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

const UNSEEN = { "no-face": "camera-no-face", "several-faces": "camera-several-faces" };

// The visitor's camera: opening, the small mirror, and what can go wrong.
//
// Its frames go to the server, which reads how the face moves and forgets them.

import { closeDevice, openDevice } from "./device.js";
import { cameraErrorCode } from "./error-messages.js";

const CONSTRAINTS = {
  width: { ideal: 480 },
  height: { ideal: 360 },
  frameRate: { ideal: 25, max: 30 },
  facingMode: "user",
};

/** The camera, closed until `open` is called. Events: `change`, `lost` (it was disconnected). */
export class Camera extends EventTarget {
  #mirror;
  #stream = null;

  /** @param {HTMLVideoElement} mirror shows the visitor what the camera sees. */
  constructor(mirror) {
    super();
    this.#mirror = mirror;
  }

  get stream() {
    return this.#stream;
  }

  get isOpen() {
    return this.#stream !== null;
  }

  /** Ask for permission and open the camera. */
  async open() {
    if (this.isOpen) return;
    const onLost = () => {
      this.close();
      this.dispatchEvent(new Event("lost"));
    };
    const options = { insecure: "camera-insecure", codeOf: cameraErrorCode, onLost };
    this.#stream = await openDevice({ video: CONSTRAINTS }, options);
    const [track] = this.#stream.getVideoTracks();
    track.contentHint = "motion"; // the rate matters more than sharpness
    this.#mirror.srcObject = this.#stream;
    this.#mirror.play().catch(() => {});
    this.dispatchEvent(new Event("change"));
  }

  close() {
    if (!this.isOpen) return;
    closeDevice(this.#stream);
    this.#stream = this.#mirror.srcObject = null;
    this.dispatchEvent(new Event("change"));
  }
}

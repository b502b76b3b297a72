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
  #request = 0; // number of the latest `open` or `close`; what an older one brings is not wanted

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

  /** Ask for permission and open the camera, unless it is closed before permission is given. */
  async open() {
    if (this.isOpen) return;
    const request = ++this.#request;
    const isStale = () => request !== this.#request;
    const onLost = () => {
      this.close();
      this.dispatchEvent(new Event("lost"));
    };
    const options = { insecure: "camera-insecure", codeOf: cameraErrorCode, onLost };
    const stream = await openDevice({ video: CONSTRAINTS }, options).catch((error) => {
      if (!isStale()) throw error;
    });
    if (isStale()) {
      if (stream) closeDevice(stream);
      return;
    }
    this.#stream = stream;
    const [track] = stream.getVideoTracks();
    track.contentHint = "motion"; // the rate matters more than sharpness
    this.#mirror.srcObject = stream;
    this.#mirror.play().catch(() => {});
    this.dispatchEvent(new Event("change"));
  }

  close() {
    this.#request++;
    if (!this.isOpen) return;
    closeDevice(this.#stream);
    this.#stream = this.#mirror.srcObject = null;
    this.dispatchEvent(new Event("change"));
  }
}

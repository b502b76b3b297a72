// Records what the page shows and plays of the avatar, and saves it as a file of this computer.

const TYPES = ["video/mp4;codecs=avc1.42E01F,mp4a.40.2", "video/webm;codecs=vp8,opus", "video/webm"];

/** A recorder of a video element's stream. Event: `change`, when it begins and when it has ended. */
export class StageRecorder extends EventTarget {
  #video;
  #recorder = null;

  /** @param {HTMLVideoElement} video */
  constructor(video) {
    super();
    this.#video = video;
  }

  get isOn() {
    return this.#recorder !== null;
  }

  /** Begin, or end and save. A recording also ends with the connection that it shows. */
  toggle() {
    if (this.isOn) this.#recorder.stop();
    else this.#begin();
  }

  #begin() {
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    const parts = [];
    this.#recorder = new MediaRecorder(this.#video.srcObject, { mimeType });
    this.#recorder.addEventListener("dataavailable", ({ data }) => parts.push(data));
    this.#recorder.addEventListener("stop", () => {
      this.#recorder = null;
      saveFile(new Blob(parts, { type: mimeType }));
      this.dispatchEvent(new Event("change"));
    });
    this.#recorder.start();
    this.dispatchEvent(new Event("change"));
  }
}

function saveFile(blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  const time = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
  link.download = `avatar-${time}.${blob.type.startsWith("video/mp4") ? "mp4" : "webm"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // browsers may still read it
}

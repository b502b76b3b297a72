// The background of the stage: the portrait's own, blurred, or a picture of the visitor's.
//
// It is put behind the avatar by this page, and seen on this page only.

import { drawBackground } from "./background.js";
import { Cutout } from "./cutout.js";

const $ = (id) => document.getElementById(id);
const page = document.body;

/** The select "Background", and what it shows. */
export class StageBackground {
  #api;
  #video;
  #avatar = null; // as the server describes it
  #cutout = null;
  #picture = null; // an image of the visitor's
  #request = 0; // number of the latest wish; what an older one loads is not wanted

  /**
   * @param {Api} api
   * @param {HTMLVideoElement} video
   */
  constructor(api, video) {
    this.#api = api;
    this.#video = video;
    $("background").addEventListener("change", () => this.#onChange());
    $("background-file").addEventListener("change", ({ target }) => this.#takePicture(target.files[0]));
    $("background-file").addEventListener("cancel", () => this.#refuse());
  }

  /** Show this avatar of the server's list. */
  show(avatar) {
    this.#avatar = avatar;
    this.#refresh();
  }

  #onChange() {
    if ($("background").value === "picture") $("background-file").click();
    else this.#refresh();
  }

  async #takePicture(file) {
    if (!file) return;
    const image = new Image();
    image.src = URL.createObjectURL(file);
    $("background-file").value = "";
    try {
      await image.decode();
    } catch {
      return this.#refuse();
    } finally {
      URL.revokeObjectURL(image.src);
    }
    this.#picture = image;
    this.#refresh();
  }

  #refuse() {
    if (!this.#picture) $("background").value = "own";
    this.#refresh();
  }

  async #refresh() {
    const request = ++this.#request;
    const kind = $("background").value;
    if (kind === "own") return this.#hide();
    const images = await this.#load().catch(() => null);
    if (request !== this.#request) return;
    if (!images) {
      $("background").value = "own";
      return this.#hide();
    }
    const [still, matte] = images;
    this.#cutout ??= new Cutout($("cutout"), this.#video);
    this.#cutout.isPaused = false;
    this.#cutout.show(still, matte);
    if (kind === "blur") drawBackground($("backdrop"), still, matte);
    else cover($("backdrop"), this.#picture, still);
    page.dataset.background = kind;
  }

  #hide() {
    if (this.#cutout) this.#cutout.isPaused = true;
    delete page.dataset.background;
  }

  #load() {
    const { still, matte } = this.#avatar;
    return Promise.all([still, matte].map((path) => this.#image(path)));
  }

  async #image(path) {
    const image = new Image();
    image.crossOrigin = "anonymous";
    image.src = this.#api.url(path);
    await image.decode();
    return image;
  }
}

/** Draw a picture so that it covers a canvas of the still's shape. */
function cover(canvas, picture, still) {
  const { naturalWidth: width, naturalHeight: height } = still;
  Object.assign(canvas, { width, height });
  const scale = Math.max(width / picture.naturalWidth, height / picture.naturalHeight);
  const [wide, high] = [scale * picture.naturalWidth, scale * picture.naturalHeight];
  canvas.getContext("2d").drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
}

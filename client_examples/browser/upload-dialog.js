// The dialog that makes an avatar from the visitor's own photo.

const DEFAULT_LABEL = "Yours";
const UPLOAD_MS = 120_000; // a photo is sent and its face found within this time
const DEFAULT_CONSENT =
  "This is a photo of me, or the person in it has agreed to be shown as a talking avatar.";
const KEPT = "The photo stays in the server's memory.";
// What is kept, by whether the server records its sessions; without an answer neither is claimed.
const PRIVACY = {
  false: `${KEPT} It is never written to disk, and you can remove it here at any time.`,
  true: `${KEPT} The server records its sessions, so the avatar's video is saved on its disk. Removing the photo here deletes both.`,
  undefined: `${KEPT} You can remove it here at any time.`,
};

const $ = (id) => document.getElementById(id);

/**
 * Asks for a photo and for consent, uploads it, and shows the crop that will be animated; of
 * several faces, the visitor chooses one.
 *
 * Steps (`data-step`): `pick` a file, `ask` for consent, `busy` while the server looks for the
 * face, then `crop`, or `failed` with the reason.
 */
export class UploadDialog {
  #api;
  #labels;
  #onDone;
  #maxBytes = Infinity;
  #file = null;
  #uploaded = null; // the new avatar as the server describes it, until the visitor accepts it

  /**
   * @param {Api} api
   * @param {object} options
   * @param {function} options.labels returns the names that are taken.
   * @param {function} options.onDone called with the new avatar when the visitor accepts it.
   */
  constructor(api, { labels, onDone }) {
    this.#api = api;
    this.#labels = labels;
    this.#onDone = onDone;
    $("file").addEventListener("change", ({ target: { files } }) => files[0] && this.#setFile(files[0]));
    $("consent").addEventListener("change", () => this.#show("ask"));
    $("upload-close").addEventListener("click", () => $("upload").close());
    $("upload-other").addEventListener("click", () => this.#pickAgain());
    $("upload").addEventListener("close", () => this.#discard());
    $("preview-image").addEventListener("error", ({ target }) => target.removeAttribute("src"));
    new ResizeObserver(() => this.#mark()).observe($("preview"));
    $("upload-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#uploaded) this.#accept();
      else this.#upload();
    });
  }

  /**
   * Take the server's configuration, and the largest file that it accepts.
   *
   * @param {object} config `consent` is the sentence to agree to, `disclosure.recorded` says
   *   whether sessions are recorded; empty if the server did not answer.
   * @param {number} [maxBytes]
   */
  configure({ consent, disclosure }, maxBytes) {
    $("consent-text").textContent = consent ?? DEFAULT_CONSENT;
    $("upload-privacy").textContent = PRIVACY[disclosure?.recorded];
    this.#maxBytes = maxBytes ?? Infinity;
  }

  /** Open the dialog, with an image file or without. */
  open(file) {
    this.#reset();
    if (!$("upload").open) $("upload").showModal();
    if (file) this.#setFile(file);
  }

  #reset() {
    this.#discard();
    $("file").value = "";
    $("label").value = "";
    $("consent").checked = false;
    this.#show("pick");
  }

  #pickAgain() {
    this.#discard();
    this.#show("pick");
    $("file").value = "";
    $("file").click();
  }

  // Forget the photo, also on the server if it was uploaded and not accepted.
  #discard() {
    if (this.#uploaded) this.#delete(this.#uploaded);
    this.#uploaded = null;
    this.#file = null;
    $("faces").replaceChildren();
    const image = $("preview-image");
    if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
    image.removeAttribute("src");
  }

  #delete({ id }) {
    this.#api.request(`v1/avatars/${id}`, { method: "DELETE" }).catch(() => {});
  }

  #setFile(file) {
    this.#discard();
    if (file.size > this.#maxBytes) {
      const limit = Math.round(this.#maxBytes / 1e6);
      return this.#show("pick", `This file is too large. Choose one of at most ${limit} MB.`);
    }
    this.#file = file;
    $("label").placeholder = freeName(nameOf(file), this.#labels());
    $("preview-image").src = URL.createObjectURL(file);
    this.#show("ask");
  }

  // Send the photo; `face` is a point on the wanted face, as shares of its sides.
  async #upload(face) {
    const file = this.#file;
    this.#show("busy");
    const label = $("label").value.trim() || $("label").placeholder;
    const path = this.#api.avatarsPath({ consent: true, label, ...(face && { face }) });
    try {
      const uploaded = await this.#api.request(path, {
        method: "POST",
        headers: { "content-type": file.type || "application/octet-stream" },
        body: file,
        signal: AbortSignal.timeout(UPLOAD_MS),
      });
      if (file === this.#file) await this.#showCrop(uploaded);
      else this.#delete(uploaded); // the dialog was closed meanwhile, or has another photo
    } catch (error) {
      if (file === this.#file) this.#show(this.#uploaded ? "crop" : "failed", error.message);
    }
  }

  async #showCrop(uploaded) {
    if (this.#uploaded) this.#delete(this.#uploaded); // another face was chosen
    this.#uploaded = uploaded;
    const image = $("preview-image");
    // The photo itself, unless this browser cannot show it, has the faces to choose from.
    const isChoice = uploaded.faces?.length > 1 && image.naturalWidth > 0;
    if (!isChoice) {
      URL.revokeObjectURL(image.src);
      image.src = this.#api.url(uploaded.still);
    }
    await image.decode().catch(() => {});
    if (uploaded !== this.#uploaded) return; // closed meanwhile
    if (isChoice) this.#offerFaces(uploaded.faces);
    this.#show("crop");
    this.#mark();
  }

  // Put a button on each face of the photo.
  #offerFaces(faces) {
    if ($("faces").childElementCount) return; // the same photo: only the choice has changed
    const buttons = faces.map(([left, top, width, height], index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Face ${index + 1} of ${faces.length}`);
      button.setAttribute("aria-pressed", index === 0);
      button.addEventListener("click", () => this.#choose(button, [left + width / 2, top + height / 2]));
      return button;
    });
    $("faces").replaceChildren(...buttons);
  }

  async #choose(button, point) {
    const before = $("faces").querySelector('[aria-pressed="true"]');
    if (button === before) return;
    const kept = this.#uploaded;
    before.setAttribute("aria-pressed", false);
    button.setAttribute("aria-pressed", true);
    await this.#upload(point.map((share) => share.toFixed(4)).join(","));
    button.focus();
    if (this.#uploaded !== kept) return;
    before.setAttribute("aria-pressed", true); // that face cannot be used
    button.setAttribute("aria-pressed", false);
  }

  // Lay the marks on what they mark, wherever the preview shows it.
  #mark() {
    const image = $("preview-image");
    if (!this.#uploaded) return;
    const { faces, face, width, height } = this.#uploaded;
    const buttons = [...$("faces").children];
    for (const [index, button] of buttons.entries()) place(button, image, faces[index]);
    const [left, top, side] = face;
    place($("crop"), image, [left / width, top / height, side / width, side / height]);
  }

  #accept() {
    const uploaded = this.#uploaded;
    this.#uploaded = null;
    $("upload").close();
    const label = $("label").value.trim() || $("label").placeholder;
    this.#onDone({ default: false, label, ...uploaded });
  }

  #show(step, error = "") {
    $("upload").dataset.step = step;
    const hasImage = step !== "pick";
    $("pick").hidden = hasImage;
    $("preview-image").hidden = !hasImage;
    const isChoice = $("faces").childElementCount > 0;
    $("crop").hidden = step !== "crop" || isChoice;
    $("faces").hidden = step !== "crop";
    $("upload-ask").hidden = step === "pick" || step === "crop" || step === "failed";
    $("upload-other").hidden = step === "pick" || step === "busy";
    $("upload-next").hidden = step === "pick" || step === "failed";
    $("upload-next").textContent =
      { crop: "Use this avatar", busy: "Looking for the face" }[step] ?? "Find the face";
    $("upload-next").disabled = step === "busy" || (step === "ask" && !$("consent").checked);
    $("consent").disabled = step === "busy";
    $("crop-text").textContent = step === "crop" ? cropText(this.#uploaded) : "";
    $("upload-error").textContent = error;
    $("upload-error").hidden = !error;
  }
}

/** Lay an element on a part of an image, given in shares of its sides; what is beyond is cut off. */
function place(element, image, [left, top, width, height]) {
  const x = [left, left + width].map((share) => Math.min(Math.max(share, 0), 1) * image.clientWidth);
  const y = [top, top + height].map((share) => Math.min(Math.max(share, 0), 1) * image.clientHeight);
  element.style.left = `${image.offsetLeft + x[0]}px`;
  element.style.top = `${image.offsetTop + y[0]}px`;
  element.style.width = `${x[1] - x[0]}px`;
  element.style.height = `${y[1] - y[0]}px`;
}

/** Return a name from that of a file, unless a camera or a program has made it up. */
function nameOf({ name }) {
  const words = name.replace(/\.[^.]*$/, "").replaceAll(/[_-]+/g, " ").trim();
  return /^\p{L}[\p{L} .']{0,55}$/u.test(words) && !MADE_UP.test(words) ? words : DEFAULT_LABEL;
}

/** Return the name, with a number if it is taken. */
function freeName(name, taken) {
  let number = 1;
  let free = name;
  while (taken.includes(free)) free = `${name} ${++number}`;
  return free;
}

const MADE_UP = /^(img|image|pasted|photo|screenshot|dsc|download|unnamed|untitled)\b/i;

function cropText({ faces, warnings }) {
  const isChoice = $("faces").childElementCount > 0;
  const what = isChoice ? `There are ${faces.length} faces. Choose the one that will move.` : "The part in the square will move.";
  const others = (warnings ?? []).filter((text) => !isChoice || !/faces were found/.test(text));
  return [what, ...others].join(" ");
}

// Who can be shown: the row of avatars, and the dialog that makes one of a picture.

const DEFAULT_CONSENT =
  "I show myself in this picture, or the person in it has agreed to be shown as a talking avatar.";
const GHOSTS = 4; // placeholders while the list is on its way

const $ = (id) => document.getElementById(id);

/** Events: `choose` [an avatar of the server's list], `warnings` [texts]. */
export class Cast extends EventTarget {
  #api;
  #avatars = [];
  #chosen = null;
  #maxBytes = Infinity;
  #upload;

  constructor(api) {
    super();
    this.#api = api;
    this.#upload = new UploadDialog(api, (avatar) => this.#add(avatar));
    $("cast").append(...Array.from({ length: GHOSTS }, ghost));
  }

  get chosen() {
    return this.#chosen;
  }

  /** Load the list; choose the avatar of that id, or the first. */
  async load(id, consent) {
    const { avatars, max_upload_bytes } = await this.#api.request("v1/avatars");
    this.#avatars = avatars;
    this.#upload.configure(consent ?? DEFAULT_CONSENT, max_upload_bytes);
    this.choose(avatars.find((one) => one.id === id) ?? avatars[0]);
  }

  choose(avatar) {
    this.#chosen = avatar;
    this.#draw();
    this.dispatchEvent(new CustomEvent("choose", { detail: avatar }));
  }

  /** Offer a picture file for a new avatar; without one, ask for it. */
  offer(file = null) {
    this.#upload.open(file);
  }

  #add(avatar) {
    this.#avatars.push(avatar);
    this.choose(avatar);
  }

  async #remove(avatar) {
    this.#avatars = this.#avatars.filter((one) => one !== avatar);
    if (this.#chosen === avatar) this.choose(this.#avatars[0]);
    else this.#draw();
    await this.#api.request(`v1/avatars/${avatar.id}`, { method: "DELETE" }).catch(() => {});
  }

  #draw() {
    const legend = $("cast").firstElementChild;
    $("cast").replaceChildren(legend, ...this.#avatars.map((one) => this.#card(one)), this.#adder());
  }

  #card(avatar) {
    const image = make("img", { src: this.#api.address(avatar.thumbnail), alt: "" });
    const label = make("span", { className: "label", textContent: avatar.label });
    const radio = make("input", { type: "radio", name: "avatar", checked: avatar === this.#chosen });
    radio.addEventListener("change", () => this.choose(avatar));
    const body = make("span", {}, image, label);
    const card = make("label", { className: "face" }, radio, body);
    return avatar.default === false ? make("div", { className: "slot" }, card, this.#remover(avatar)) : card;
  }

  #remover(avatar) {
    const button = make("button", { type: "button", className: "remove" });
    button.innerHTML = '<svg><use href="#i-close" /></svg>';
    button.setAttribute("aria-label", `Remove ${avatar.label}`);
    button.addEventListener("click", () => this.#remove(avatar));
    return button;
  }

  #adder() {
    const button = make("button", { type: "button", className: "face", id: "add" });
    button.innerHTML = '<span class="add"><svg><use href="#i-plus" /></svg></span><span class="label">Add yours</span>';
    button.addEventListener("click", () => this.offer());
    return button;
  }
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function ghost() {
  const body = make("span", {}, make("span", { className: "add" }), "\u00a0");
  return make("span", { className: "face ghost" }, body);
}

// Steps: `pick` a file, `ask` for consent, `busy` while the server looks for the face, then the
// `crop` it would animate is shown, to be used or not.
class UploadDialog {
  #api;
  #onDone;
  #maxBytes = Infinity;
  #file = null;
  #made = null; // the server's avatar, until it is used

  constructor(api, onDone) {
    this.#api = api;
    this.#onDone = onDone;
    $("file").addEventListener("change", ({ target }) => target.files[0] && this.#take(target.files[0]));
    $("consent").addEventListener("change", () => this.#show("ask"));
    $("upload-close").addEventListener("click", () => $("upload").close());
    $("upload-other").addEventListener("click", () => this.#again());
    $("upload").addEventListener("close", () => this.#drop());
    $("preview-image").addEventListener("error", ({ target }) => target.removeAttribute("src"));
    $("upload-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#made) this.#use();
      else this.#send();
    });
  }

  configure(consent, maxBytes) {
    $("consent-text").textContent = consent;
    this.#maxBytes = maxBytes ?? Infinity;
  }

  open(file) {
    this.#reset();
    if (!$("upload").open) $("upload").showModal();
    if (file) this.#take(file);
  }

  #reset() {
    this.#drop();
    $("file").value = "";
    $("label").value = "";
    $("consent").checked = false;
    this.#show("pick");
  }

  #again() {
    this.#drop();
    this.#show("pick");
    $("file").value = "";
    $("file").click();
  }

  // Forget the picture, on the server too if it is there and was not used.
  #drop() {
    if (this.#made) this.#api.request(`v1/avatars/${this.#made.id}`, { method: "DELETE" }).catch(() => {});
    this.#made = null;
    this.#file = null;
    const image = $("preview-image");
    if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
    image.removeAttribute("src");
  }

  #take(file) {
    this.#drop();
    this.#file = file;
    $("preview-image").src = URL.createObjectURL(file);
    this.#show("ask");
    if (file.size > this.#maxBytes) {
      const limit = Math.round(this.#maxBytes / 1e6);
      this.#file = null;
      this.#show("pick", `That file is too large: ${limit} MB are accepted. Choose a smaller one.`);
    }
  }

  async #send() {
    const file = this.#file;
    this.#show("busy");
    const label = encodeURIComponent($("label").value.trim() || "Yours");
    try {
      const made = await this.#api.request(`v1/avatars?consent=true&label=${label}`, {
        method: "POST",
        headers: { "content-type": file.type || "application/octet-stream" },
        body: file,
      });
      if (file !== this.#file) return;
      await this.#showCrop(made);
    } catch (error) {
      if (file === this.#file) this.#show("wrong", error.message);
    }
  }

  async #showCrop(made) {
    this.#made = made;
    const image = $("preview-image");
    URL.revokeObjectURL(image.src);
    image.src = this.#api.address(made.still);
    await image.decode().catch(() => {});
    this.#show("crop");
    const [left, top, side] = made.face;
    const scale = image.clientWidth / made.width;
    const style = $("crop").style;
    style.left = `${image.offsetLeft + left * scale}px`;
    style.top = `${image.offsetTop + top * scale}px`;
    style.width = style.height = `${side * scale}px`;
  }

  #use() {
    const made = this.#made;
    this.#made = null;
    $("upload").close();
    this.#onDone({ default: false, label: $("label").value.trim() || "Yours", ...made });
  }

  #show(step, wrong = "") {
    $("upload").dataset.step = step;
    const hasPicture = step !== "pick";
    $("pick").hidden = hasPicture;
    $("preview-image").hidden = !hasPicture;
    $("crop").hidden = step !== "crop";
    $("upload-ask").hidden = step === "pick" || step === "crop" || step === "wrong";
    $("upload-other").hidden = step === "pick" || step === "busy";
    $("upload-next").hidden = step === "pick" || step === "wrong";
    $("upload-next").textContent = { crop: "Use this avatar", busy: "Looking for the face" }[step] ?? "Find the face";
    $("upload-next").disabled = step === "busy" || (step === "ask" && !$("consent").checked);
    $("consent").disabled = step === "busy";
    $("preview-note").textContent = step === "crop" ? cropWords(this.#made) : "";
    $("upload-note").textContent = wrong;
    $("upload-note").hidden = !wrong;
  }
}

const cropWords = ({ warnings }) =>
  ["The square is the part that will move.", ...(warnings ?? [])].join(" ");

// The page's hand on the overlay: its address for OBS, and how it looks.

const $ = (id) => document.getElementById(id);

/** Fills the "Show it in OBS" part of the page and sends what is chosen there. */
export class OverlayControl {
  #avatar;

  constructor(avatar) {
    this.#avatar = avatar;
    avatar.addEventListener("state", () => this.#showLink());
    avatar.addEventListener("overlay", ({ detail }) => this.#showSettings(detail));
    $("obs").addEventListener("toggle", () => this.#renew());
    $("overlay-link").addEventListener("focus", ({ target }) => target.select());
    $("overlay-copy").addEventListener("click", () => this.#copy());
    $("overlay-fields").addEventListener("change", () => this.#send());
    this.#answer();
  }

  // An overlay of this browser that was opened without a session asks for one.
  #answer() {
    const channel = new BroadcastChannel("letstalk");
    channel.onmessage = ({ data }) => {
      const { session, viewer_token: token } = this.#avatar.session ?? {};
      if (data?.type === "who" && session) channel.postMessage({ type: "session", session, token });
    };
  }

  get #link() {
    const { session, viewer_token: token } = this.#avatar.session ?? {};
    if (!session) return "";
    const address = new URL(this.#avatar.api.address("overlay/"));
    address.searchParams.set("session", session);
    for (const [key, value] of Object.entries(this.#settings)) {
      if (value) address.searchParams.set(key, value);
    }
    if (token) address.hash = `token=${token}`;
    return address.href;
  }

  get #settings() {
    const fields = $("overlay-fields").querySelectorAll("[name]");
    return Object.fromEntries([...fields].map(({ name, value }) => [name, value]));
  }

  // The link's token is short-lived; what is copied should be a fresh one.
  async #renew() {
    if (this.#avatar.session?.viewer_token) await this.#avatar.refresh().catch(() => {});
    this.#showLink();
  }

  #showLink() {
    $("overlay-link").value = this.#link;
    $("overlay-copy").disabled = !this.#link;
  }

  #showSettings(settings) {
    for (const [name, value] of Object.entries(settings)) {
      const field = $("overlay-fields").querySelector(`[name="${CSS.escape(name)}"]`);
      if (field && document.activeElement !== field) field.value = value;
    }
    this.#showLink();
  }

  #send() {
    this.#avatar.send({ type: "overlay.update", overlay: this.#settings });
    this.#showLink();
  }

  async #copy() {
    await this.#renew();
    $("overlay-link").select();
    try {
      await navigator.clipboard.writeText(this.#link);
    } catch {
      document.execCommand("copy"); // pages over plain http have no clipboard
    }
    $("overlay-copy").textContent = "Copied";
    setTimeout(() => ($("overlay-copy").textContent = "Copy"), 1500);
  }
}

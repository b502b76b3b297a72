// The section "Show it in OBS": the overlay's address and appearance.

const $ = (id) => document.getElementById(id);

/** Shows the address of the overlay and sends the settings that are chosen for it. */
export class OverlayControl {
  #avatar;

  constructor(avatar) {
    this.#avatar = avatar;
    avatar.addEventListener("state", () => this.#showLink());
    avatar.addEventListener("overlay", ({ detail }) => this.#showSettings(detail));
    $("obs").addEventListener("toggle", () => this.#refreshLink());
    $("overlay-link").addEventListener("focus", ({ target }) => target.select());
    $("overlay-copy").addEventListener("click", () => this.#copy());
    $("overlay-fields").addEventListener("change", () => this.#send());
    this.#announceSession();
  }

  // Answers overlays in the same browser that were opened without a session.
  #announceSession() {
    const channel = new BroadcastChannel("letstalk");
    channel.onmessage = ({ data }) => {
      const { session, viewer_token: token } = this.#avatar.session ?? {};
      if (data?.type === "find-session" && session) channel.postMessage({ type: "session", session, token });
    };
  }

  get #link() {
    const { session, viewer_token: token } = this.#avatar.session ?? {};
    if (!session) return "";
    const url = new URL(this.#avatar.api.url("overlay/"));
    url.searchParams.set("session", session);
    for (const [key, value] of Object.entries(this.#settings)) {
      if (value) url.searchParams.set(key, value);
    }
    if (token) url.hash = `token=${token}`;
    return url.href;
  }

  get #settings() {
    const fields = $("overlay-fields").querySelectorAll("[name]");
    return Object.fromEntries([...fields].map(({ name, value }) => [name, value]));
  }

  // The token in the link expires soon, so a new one is fetched before the link is copied.
  async #refreshLink() {
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
    await this.#refreshLink();
    $("overlay-link").select();
    try {
      await navigator.clipboard.writeText(this.#link);
    } catch {
      document.execCommand("copy"); // pages served over plain HTTP have no clipboard API
    }
    $("overlay-copy").textContent = "Copied";
    setTimeout(() => ($("overlay-copy").textContent = "Copy"), 1500);
  }
}

// Talking with the avatar: captions of both sides, what was said, the prompt and the voice.

const HOW_TO =
  "To talk with the avatar, start the server with --chat-url URL --chat-model NAME.";
const PRIVACY = "What you say goes to the recogniser and the chat model of this server's operator.";
const MAX_LINES = 100;
const CAPTION_MS = 4000; // a caption stays for so long after the last word

const STATES = { hearing: "Hearing you", thinking: "Thinking", speaking: "Speaking" };

/**
 * The parts of the page that belong to a conversation.
 *
 * Events: `change` (the state, or whether it is on).
 */
export class ConversationPanel extends EventTarget {
  #avatar;
  #parts;
  #available = false;
  #state = "listening";
  #timer = 0;

  /**
   * @param {LetsTalkAvatar} avatar
   * @param {object} parts elements: `purpose` (a fieldset of two radio buttons, `with` and
   *   `through`), `panel`, `captions`, `transcript`, `voice`, `prompt`, `notes` and `hint`.
   */
  constructor(avatar, parts) {
    super();
    this.#avatar = avatar;
    this.#parts = parts;
    const { purpose, voice, prompt } = parts;
    purpose.addEventListener("change", () => this.#configure());
    for (const field of [voice, prompt]) field.addEventListener("change", () => this.#configure());
    avatar.addEventListener("caption", ({ detail }) => this.#onCaption(detail));
    avatar.addEventListener("conversation", ({ detail }) => this.#onState(detail.state));
    avatar.addEventListener("message", ({ detail }) => {
      if (detail.type === "session.ready") this.#configure();
    });
  }

  /** Take `conversation` of the server's configuration. */
  configure({ available = false, prompt = null, voices = [], notices = [] } = {}) {
    const { purpose, panel, hint, notes, voice, prompt: field } = this.#parts;
    this.#available = available;
    purpose.hidden = panel.hidden = !available;
    hint.textContent = available ? PRIVACY : HOW_TO;
    hint.hidden = false;
    notes.textContent = notices.join(" ");
    notes.hidden = !notices.length;
    field.value = prompt ?? "";
    field.closest("label").hidden = prompt === null;
    voice.replaceChildren(new Option("Default", ""), ...voices.map((name) => new Option(name, name)));
    voice.closest("label").hidden = !voices.length;
    this.#show();
  }

  /** Whether the microphone and the text box talk with the avatar, not through it. */
  get isOn() {
    return this.#available && this.#parts.purpose.querySelector(":checked").value === "with";
  }

  /** What the conversation does now, for people; empty while it waits. */
  get doing() {
    return this.isOn ? (STATES[this.#state] ?? "") : "";
  }

  get isBusy() {
    return this.isOn && (this.#state === "thinking" || this.#state === "speaking");
  }

  #configure() {
    if (!this.#available) return;
    const { voice, prompt } = this.#parts;
    const options = { on: this.isOn, voice: voice.value };
    if (!prompt.closest("label").hidden) options.prompt = prompt.value;
    this.#avatar.converse(options);
    this.#show();
  }

  #show() {
    if (!this.isOn) {
      this.#state = "listening";
      this.#clearCaptions();
    }
    this.#parts.panel.hidden = !this.isOn;
    this.dispatchEvent(new Event("change"));
  }

  #onState(state) {
    this.#state = state;
    clearTimeout(this.#timer);
    if (state === "hearing") this.#caption("avatar", "");
    if (state === "listening") this.#timer = setTimeout(() => this.#clearCaptions(), CAPTION_MS);
    this.dispatchEvent(new Event("change"));
  }

  #onCaption({ speaker, text, final }) {
    this.#caption(speaker, text);
    if (final) this.#append(speaker, text);
  }

  /** Add a line to the transcript; a sentence of the avatar joins the one before. */
  #append(speaker, text) {
    const { transcript } = this.#parts;
    const last = transcript.lastChild;
    if (speaker === "avatar" && last?.dataset.speaker === speaker) {
      last.textContent += ` ${text}`;
    } else {
      const line = document.createElement("li");
      line.dataset.speaker = speaker;
      line.textContent = text;
      transcript.append(line);
    }
    while (transcript.children.length > MAX_LINES) transcript.firstChild.remove();
    transcript.scrollTop = transcript.scrollHeight;
  }

  #caption(speaker, text) {
    this.#parts.captions.querySelector(`[data-speaker="${speaker}"]`).textContent = text;
  }

  #clearCaptions() {
    for (const line of this.#parts.captions.children) line.textContent = "";
  }
}

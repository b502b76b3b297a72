// The text box: what is typed into it, the avatar speaks.

const PURPOSES = {
  through: ["Type what the avatar says", "Say it", "Text for the avatar to speak"],
  with: ["Type to the avatar", "Send", "Text to say to the avatar"],
};
const NO_VOICE =
  "This server has no voice for text. Its operator can install one, such as espeak-ng.";

/** The form with a text field and a button; it is off until the server says that it can speak. */
export class TextBox extends EventTarget {
  #form;
  #field;
  #button;
  #hint;
  #available = false;
  #live = false;

  /** @param {HTMLFormElement} form with an input, a button and a hint of class `fine`. */
  constructor(form) {
    super();
    this.#form = form;
    this.#field = form.querySelector("input");
    this.#button = form.querySelector("button");
    this.#hint = form.querySelector(".fine");
    form.addEventListener("submit", (event) => this.#onSubmit(event));
    this.#field.addEventListener("input", () => this.#refresh());
    this.#refresh();
  }

  /** Take `speech` of the server's configuration: whether it can speak, and how long a text. */
  configure({ available = false, max_chars: maxChars } = {}) {
    this.#available = available;
    if (maxChars) this.#field.maxLength = maxChars;
    this.#hint.textContent = available ? "" : NO_VOICE;
    this.#hint.hidden = available;
    this.#form.hidden = false;
    this.#refresh();
  }

  /** Whether the avatar can be spoken to now. The field stays usable, so that a text is kept. */
  set live(on) {
    this.#live = on;
    this.#refresh();
  }

  /** Whether the text is said by the avatar (`through`) or to it (`with`). */
  set purpose(name) {
    const [placeholder, label, description] = PURPOSES[name];
    this.#field.placeholder = placeholder;
    this.#button.textContent = label;
    this.#form.querySelector("label").textContent = description;
  }

  /** Put back a text that could not be spoken. */
  restore(text) {
    this.#field.value ||= text;
    this.#refresh();
  }

  #refresh() {
    this.#field.disabled = !this.#available;
    this.#button.disabled = !this.#available || !this.#live || !this.#field.value.trim();
  }

  #onSubmit(event) {
    event.preventDefault();
    const text = this.#field.value.trim();
    if (this.#button.disabled || !text) return;
    this.#field.value = "";
    this.#refresh();
    this.dispatchEvent(new CustomEvent("say", { detail: text }));
  }
}

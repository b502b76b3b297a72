// The section "Movement, look, recording".
//
// Movement changes at once, and the voice from the next text on.

import { readSaved, save } from "./saved-choices.js";
import { StageRecorder } from "./stage-recorder.js";

const MOTION_KEY = "letstalk.motion";
const VOICE_KEY = "letstalk.voice";
const SEND_MS = 100; // a slider that is dragged sends no more often
const DEFAULTS = { head_motion: true, blinks_per_min: 15, expressiveness: 1 };

const $ = (id) => document.getElementById(id);

/** Head motion, blinks, expressiveness, the voice of texts, and a recording of the stage. */
export class LookControl {
  #avatar;
  #recorder;
  #timer = null;

  /**
   * @param {LetsTalkAvatar} avatar
   * @param {HTMLVideoElement} video that shows it.
   */
  constructor(avatar, video) {
    this.#avatar = avatar;
    this.#recorder = new StageRecorder(video);
    this.#show({ ...DEFAULTS, ...readSaved(MOTION_KEY, {}) });
    $("look-motion").addEventListener("input", () => this.#onMotion());
    $("say-voice").addEventListener("change", ({ target }) => save(VOICE_KEY, target.value));
    $("record").addEventListener("click", () => this.#recorder.toggle());
    this.#recorder.addEventListener("change", () => this.#refresh());
    avatar.addEventListener("state", () => this.#refresh());
    this.#onMotion();
    this.#tell(); // before the first session is opened
    this.#refresh();
  }

  /** Take `speech` of the server's configuration. */
  configure({ voices = [] } = {}) {
    const options = voices.map((name) => new Option(name, name));
    $("say-voice").replaceChildren(new Option("Default", ""), ...options);
    const saved = readSaved(VOICE_KEY, "");
    $("say-voice").value = voices.includes(saved) ? saved : "";
    $("say-voice").closest("label").hidden = !voices.length;
  }

  /** The chosen voice of texts; empty for the server's own. */
  get voice() {
    return $("say-voice").value;
  }

  get #motion() {
    return {
      head_motion: $("head-motion").checked,
      blinks_per_min: Number($("blinks").value),
      expressiveness: Number($("expressiveness").value),
    };
  }

  #show(motion) {
    $("head-motion").checked = motion.head_motion;
    $("blinks").value = motion.blinks_per_min;
    $("expressiveness").value = motion.expressiveness;
  }

  #onMotion() {
    const motion = this.#motion;
    $("blinks-value").textContent = `${motion.blinks_per_min}`;
    $("expressiveness-value").textContent = `${Math.round(100 * motion.expressiveness)} %`;
    save(MOTION_KEY, motion);
    this.#timer ??= setTimeout(() => this.#tell(), SEND_MS);
  }

  // Models without landmarks refuse all but the defaults, so that these are not sent.
  #tell() {
    this.#timer = null;
    const motion = this.#motion;
    this.#avatar.motion = isSame(motion, DEFAULTS) ? null : motion;
  }

  #refresh() {
    const isLive = this.#avatar.state === "live";
    const { isOn } = this.#recorder;
    $("record").disabled = !isLive && !isOn;
    $("record").toggleAttribute("data-on", isOn);
    $("record").textContent = isOn ? "Stop and save" : "Record";
  }
}

const isSame = (one, other) => Object.keys(one).every((key) => one[key] === other[key]);

// The section "Movement, look, recording".
//
// A session moves as it was told when it began, so that movement changes when the avatar starts
// next. The voice holds from the next text on.

import { readSaved, save } from "./saved-choices.js";
import { StageRecorder } from "./stage-recorder.js";

const MOTION_KEY = "letstalk.motion";
const VOICE_KEY = "letstalk.voice";
const DEFAULTS = { head_motion: true, blinks_per_min: 15, expressiveness: 1 };

const $ = (id) => document.getElementById(id);

/** Head motion, blinks, expressiveness, the voice of texts, and a recording of the stage. */
export class LookControl {
  #avatar;
  #recorder;

  /**
   * @param {LetsTalkAvatar} avatar
   * @param {HTMLVideoElement} video that shows it.
   */
  constructor(avatar, video) {
    this.#avatar = avatar;
    this.#recorder = new StageRecorder(video);
    this.#show({ ...DEFAULTS, ...readSaved(MOTION_KEY, {}) });
    $("look-motion").addEventListener("input", () => this.#onMotion());
    $("motion-restart").addEventListener("click", () => avatar.restart().catch(() => {}));
    $("say-voice").addEventListener("change", ({ target }) => save(VOICE_KEY, target.value));
    $("record").addEventListener("click", () => this.#recorder.toggle());
    this.#recorder.addEventListener("change", () => this.#refresh());
    avatar.addEventListener("state", () => this.#refresh());
    this.#onMotion();
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
    // Models without landmarks refuse all but the defaults, so that these are not sent.
    this.#avatar.motion = isSame(motion, DEFAULTS) ? null : motion;
    this.#refresh();
  }

  #refresh() {
    const isLive = this.#avatar.state === "live";
    const shown = this.#avatar.session?.motion;
    const isDue = isLive && shown !== undefined && !isSame(this.#motion, shown);
    $("motion-note").textContent = isDue
      ? "This changes when the avatar starts next."
      : "A change here holds when the avatar starts next.";
    $("motion-restart").hidden = !isDue;
    const { isOn } = this.#recorder;
    $("record").disabled = !isLive && !isOn;
    $("record").toggleAttribute("data-on", isOn);
    $("record").textContent = isOn ? "Stop and save" : "Record";
  }
}

const isSame = (one, other) => Object.keys(one).every((key) => one[key] === other[key]);

// Appearance of the overlay: set in its URL, and by another page while it runs.

const COLOUR = /^#?([0-9a-f]{3,8})$/i;
const NAMED = { green: "#00b140", blue: "#0047bb", magenta: "#ff00ff", black: "#000000", white: "#ffffff" };
const PLACES = {
  "top-left": "start start", top: "start center", "top-right": "start end",
  left: "center start", center: "center center", right: "center end",
  "bottom-left": "end start", bottom: "end center", "bottom-right": "end end",
};
const SHAPES = ["none", "rounded", "squircle", "circle"];

export const DEFAULTS = {
  bg: "transparent", // of the page: a colour, transparent, or the portrait's background: scene, blur
  fill: "transparent", // the same, behind the person and inside the shape
  shape: "none",
  pos: "bottom",
  size: 100, // height in percent of the page
  x: 0, // offset to the right and down, in percent of the page
  y: 0,
  border: 0, // px
  border_color: "#ffffff",
  name: "",
  flip: false,
  hidden: false,
};

/** Return the settings with those of another object; unknown or invalid ones are ignored. */
export function merge(settings, changes) {
  const merged = { ...settings };
  for (const [key, current] of Object.entries(settings)) {
    const value = changes[key];
    if (value === undefined || value === null) continue;
    if (typeof current === "number") merged[key] = Number.isFinite(Number(value)) ? Number(value) : current;
    else if (typeof current === "boolean") merged[key] = ["true", "1", "yes", "on", true].includes(value);
    else merged[key] = String(value).slice(0, 200);
  }
  return merged;
}

/** Return a CSS colour, `transparent` for anything unknown. */
export function colour(text) {
  if (NAMED[text]) return NAMED[text];
  const match = COLOUR.exec(text);
  return match ? `#${match[1]}` : "transparent";
}

/** Whether the portrait's own background is shown. */
export const showsScene = ({ bg, fill }) => bg === "scene" || fill === "scene";

/** Whether that is shown blurred. */
export const showsBlur = ({ bg, fill }) => bg === "blur" || fill === "blur";

/** Apply the settings to the page. */
export function apply(settings, page) {
  const style = page.style;
  style.setProperty("--bg", colour(settings.bg));
  style.setProperty("--fill", colour(settings.fill));
  style.setProperty("--place", PLACES[settings.pos] ?? PLACES.bottom);
  style.setProperty("--size", clamp(settings.size, 5, 400));
  style.setProperty("--x", `${clamp(settings.x, -100, 100)}vw`);
  style.setProperty("--y", `${clamp(settings.y, -100, 100)}vh`);
  style.setProperty("--border", `${clamp(settings.border, 0, 200)}px`);
  style.setProperty("--border-color", colour(settings.border_color));
  page.dataset.shape = SHAPES.includes(settings.shape) ? settings.shape : "none";
  page.toggleAttribute("data-flip", settings.flip);
  page.toggleAttribute("data-hidden", settings.hidden);
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// What to tell a person when something fails: what happened, and what to do about it.

const WORDS = {
  "mic-denied": [
    "The microphone is blocked.",
    "Click the icon left of the address, allow the microphone for this page, then press again. No camera is needed.",
  ],
  "mic-missing": [
    "No microphone was found.",
    "Plug one in and press again, or play a sound file. No camera is needed.",
  ],
  "mic-busy": [
    "The microphone is in use.",
    "Another program holds it. Close that one and press again.",
  ],
  "mic-insecure": [
    "The microphone needs a secure page.",
    "Browsers open it on https:// and on localhost only. Open this page that way.",
  ],
  "mic-lost": ["The microphone is gone.", "It was unplugged or taken away. Press to open it again."],
  "mic-silent": [
    "Nothing can be heard.",
    "Check that the microphone is not muted in the system's settings, or choose another one there.",
  ],
  "speech-late": ["Your voice arrives with gaps.", "The network, or this machine, is busy."],
  clipped: ["Your voice is too loud.", "Turn the microphone down, or move away from it a little."],
  "model-behind": ["The server is busy.", "The picture may pause for a moment."],
  unreachable: [
    "The server cannot be reached.",
    "Check your network, and that the server is running.",
  ],
  "connection-lost": ["The connection was lost.", "Check your network."],
  "ice-failed": [
    "The network blocks the video.",
    "The server answers, but picture and sound find no way through. Try without a VPN or on another network. If the server is yours: open its UDP ports or add a TURN server.",
  ],
  "taken-over": [
    "The avatar is open in another tab.",
    "One page at a time can speak for it.",
    "Use it here",
  ],
  "session-over": ["The time is over.", "This session reached its limit.", "Start again"],
  idle: ["The session was closed.", "Nobody had spoken for a long while.", "Start again"],
  ended: ["The session was ended.", "Somebody closed it.", "Start again"],
  stopping: ["The server is restarting.", "The page comes back by itself."],
  "token-missing": ["A link with a key is needed.", "Open the page by the link that the server printed or that you were sent."],
  "token-invalid": ["This link is not valid.", "Ask for a new one."],
  "token-expired": ["This link has expired.", "Ask for a new one."],
  "engine-failed": ["The avatar stopped.", "The server could not go on with it.", "Start again"],
  unsupported: [
    "This browser cannot show live video.",
    "Use a current version of Chrome, Edge, Firefox or Safari.",
  ],
  "not-live": ["The avatar is not connected.", "Wait for the live picture, then try again."],
};

/** Give `{title, text, action}` for an error: our words where we have them, else the server's. */
export function explain(error) {
  const [title, text, action] = WORDS[error.code] ?? sentences(error.message);
  return { title, text, action: action ?? "Try again" };
}

/** The first sentence says what happened, the others what to do. */
function sentences(words) {
  const [, first, rest] = /^(.*?[.!?])\s+(.*)$/s.exec(words) ?? [null, words, ""];
  return [first, rest];
}

/** Turn what `getUserMedia` raised into one of our codes. */
export function microphoneProblem(error) {
  const codes = {
    NotAllowedError: "mic-denied",
    NotFoundError: "mic-missing",
    OverconstrainedError: "mic-missing",
    NotReadableError: "mic-busy",
    AbortError: "mic-busy",
    SecurityError: "mic-insecure",
  };
  return codes[error.name] ?? "mic-busy";
}

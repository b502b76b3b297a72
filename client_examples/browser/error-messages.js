// Error messages for people: what happened, what to do about it, and the label of the button.

const MESSAGES = {
  "mic-denied": [
    "The microphone is blocked.",
    "Click the icon next to the page's address, allow the microphone for this page, then try again. No camera is needed.",
  ],
  "mic-missing": [
    "No microphone was found.",
    "Plug one in and try again, or play an audio file. No camera is needed.",
  ],
  "mic-busy": [
    "The microphone is in use.",
    "Another program is using it. Close that program and try again.",
  ],
  "mic-insecure": [
    "The microphone needs a secure page.",
    "Browsers allow it only on https:// pages and on localhost. Open this page at such an address.",
  ],
  "mic-lost": ["The microphone was disconnected.", "Plug it in again, then press the button to continue."],
  "mic-silent": [
    "The microphone is silent.",
    "Check that it is not muted in your system settings, or choose another one there.",
  ],
  "camera-denied": [
    "The camera is blocked.",
    "Click the icon next to the page's address, allow the camera for this page, then try again.",
  ],
  "camera-missing": ["No camera was found.", "Plug one in and try again. The avatar moves by itself without it."],
  "camera-busy": ["The camera is in use.", "Another program is using it. Close that program and try again."],
  "camera-insecure": [
    "The camera needs a secure page.",
    "Browsers allow it only on https:// pages and on localhost. Open this page at such an address.",
  ],
  "camera-lost": ["The camera was disconnected.", "The avatar moves by itself now. Plug it in again to continue."],
  "camera-ignored": ["This server's avatar cannot follow a camera.", "It moves by itself."],
  "camera-failed": ["The camera could not be read.", "The avatar moves by itself until it can."],
  "camera-too-large": [
    "The camera's picture is too large.",
    "The avatar moves by itself. Choose 1920x1080 or less for the camera; 640x360 is enough.",
  ],
  "camera-too-much": [
    "The camera sends more than the server reads.",
    "The avatar follows it with pauses. Choose a smaller picture for the camera; 640x360 is enough.",
  ],
  "camera-no-face": [
    "The camera sees no face.",
    "The avatar moves by itself meanwhile. Look into the camera, with light on your face.",
  ],
  "camera-several-faces": [
    "The camera sees several faces.",
    "The avatar follows one person only, and moves by itself meanwhile.",
  ],
  "speech-late": ["Your voice arrives with gaps.", "The network or this computer is busy."],
  clipped: ["Your voice is too loud.", "Turn the microphone down or move a little away from it."],
  "bad-text": ["This text cannot be spoken.", "Write a few words or sentences, in letters."],
  "no-speech-engine": ["This server has no voice for text.", "Its operator can install one, such as espeak-ng."],
  "speech-failed": ["The text could not be spoken.", "The server's voice failed. Try again in a moment."],
  "recogniser-failed": ["You were not understood.", "The server's recogniser failed. Say it again."],
  "chat-failed": ["There is no answer.", "The server's chat model failed or is not running. Its log says why."],
  "voice-failed": ["The answer could not be spoken.", "The server's voice failed. Try again in a moment."],
  "recording-failed": ["The recording has ended.", "It could not be written or signed. You can go on."],
  "model-failed": ["The avatar stopped for a moment.", "It goes on by itself in a few seconds."],
  "model-behind": ["The server is busy.", "The video may pause for a moment."],
  unreachable: [
    "The server cannot be reached.",
    "Check your network connection, and that the server is running.",
  ],
  "at-capacity": ["All places are in use.", "It starts by itself when one is free."],
  "session-gone": ["The server was lost.", "The conversation begins anew by itself."],
  "connection-lost": ["The connection was lost.", "Check your network connection."],
  "ice-failed": [
    "The network blocks the video.",
    "The server answers, but video and audio cannot get through. Try without a VPN or on another network. If this is your server, open its UDP ports or add a TURN server.",
  ],
  "taken-over": [
    "The avatar is open in another tab.",
    "Only one page at a time can speak for it.",
    "Use it here",
  ],
  "session-over": ["Your time is up.", "This session reached its time limit.", "Start again"],
  idle: ["The session was closed.", "Nobody spoke for a long time.", "Start again"],
  ended: ["The session has ended.", "Someone closed it.", "Start again"],
  stopping: ["The server is restarting.", "This page reconnects by itself."],
  "token-missing": ["This page needs a personal link.", "Open it with the link that the server printed or that you were sent."],
  "token-invalid": ["This link is not valid.", "Ask for a new one."],
  "token-expired": ["This link has expired.", "Ask for a new one."],
  "engine-failed": ["The avatar stopped.", "Something went wrong on the server.", "Start again"],
  unsupported: [
    "This browser cannot show live video.",
    "Use a current version of Chrome, Edge, Firefox or Safari.",
  ],
  "not-removed": ["The avatar was not removed.", "It is still on the server. Try again in a moment."],
  "not-renamed": ["The avatar was not renamed.", "It has its old name. Try again in a moment."],
  "not-live": ["The avatar is not connected.", "Wait until the video is live, then try again."],
};

/** Return `{title, text, action}` for an error: from the table above, else from its own message. */
export function explain(error) {
  const [title, text, action] = MESSAGES[error.code] ?? splitMessage(error.message);
  return { title, text, action: action ?? "Try again" };
}

/** Split a message of the server: the first sentence says what happened, the rest what to do. */
function splitMessage(message) {
  const [, first, rest] = /^(.*?[.!?])\s+(.*)$/s.exec(message) ?? [null, message, ""];
  return [first, rest];
}

const DEVICE_ERRORS = {
  NotAllowedError: "denied",
  NotFoundError: "missing",
  OverconstrainedError: "missing",
  NotReadableError: "busy",
  AbortError: "busy",
  SecurityError: "insecure",
};

/** Return the code for an error raised by `getUserMedia` for a microphone. */
export const microphoneErrorCode = (error) => `mic-${DEVICE_ERRORS[error.name] ?? "busy"}`;

/** Return the code for an error raised by `getUserMedia` for a camera. */
export const cameraErrorCode = (error) => `camera-${DEVICE_ERRORS[error.name] ?? "busy"}`;

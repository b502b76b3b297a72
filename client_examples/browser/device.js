// A microphone or a camera of the visitor: opening and closing it.

import { LetsTalkError } from "./api.js";

/**
 * Ask for permission and open a device.
 *
 * @param {MediaStreamConstraints} constraints of one track.
 * @param {object} options
 * @param {string} options.insecure code of the error if the page is not secure.
 * @param {function} options.codeOf gives the code of a browser's error.
 * @param {function} options.onLost called when the device is disconnected.
 * @returns {Promise<MediaStream>}
 * @throws {LetsTalkError}
 */
export async function openDevice(constraints, { insecure, codeOf, onLost }) {
  if (!navigator.mediaDevices) throw new LetsTalkError(insecure, "This page is not secure.");
  try {
    const stream = await navigator.mediaDevices.getUserMedia(constraints);
    stream.getTracks()[0].onended = onLost;
    return stream;
  } catch (error) {
    throw new LetsTalkError(codeOf(error), error.message);
  }
}

/** Close a device; it is not reported as lost. */
export function closeDevice(stream) {
  for (const track of stream.getTracks()) {
    track.onended = null;
    track.stop();
  }
}

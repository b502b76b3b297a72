// Choices of the visitor, which all pages of this browser share.

/** Return what was saved under a name, or the default if there is nothing or it cannot be read. */
export function readSaved(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise; // storage is blocked, or something else has written there
  }
}

/** Save a value under a name, where storage is allowed. */
export function save(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // the choice holds for this page
  }
}

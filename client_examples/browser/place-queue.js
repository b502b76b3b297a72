// The queue for a place on a full server.

const PAUSE_MS = 2000; // without a ticket, no place in the queue is lost by asking less often
const FULL = new Set(["at-capacity", "too-many-requests"]);
const LOST = "unknown-session"; // in a cluster a ticket is for one worker, and that may be gone

/** Opens sessions; if the server is full, it waits for a place. */
export class PlaceQueue {
  #api;
  #known;
  #onStanding;
  #ticket = null;

  /**
   * @param {Api} api
   * @param {function} known returns the ids of sessions that were opened here.
   * @param {function} onStanding called with each answer of `POST /v1/queue`, and why it waits.
   */
  constructor(api, known, onStanding) {
    this.#api = api;
    this.#known = known;
    this.#onStanding = onStanding;
  }

  /**
   * Open a session, once there is a place for it.
   *
   * @param {object} body of `POST /v1/sessions`.
   * @param {function} isStale returns whether the session is not wanted any more.
   */
  async open(body, isStale) {
    for (;;) {
      try {
        const session = await this.#post("v1/sessions", body);
        this.#ticket = null;
        return session;
      } catch (error) {
        if (!FULL.has(error.code) && error.code !== LOST) throw error;
        await this.#wait(error, isStale);
      }
    }
  }

  async #wait(error, isStale) {
    for (;;) {
      const standing = await this.#ask();
      if (isStale()) throw error;
      this.#ticket = standing.ticket;
      // Who opens sessions too often may find that there are places.
      if (standing.ready) return error.code === "too-many-requests" && pause(1000 * error.afterS);
      this.#onStanding(standing, error);
      if (!standing.ticket) await pause(PAUSE_MS);
    }
  }

  async #ask() {
    const body = { sessions: this.#known() };
    try {
      return await this.#post("v1/queue", body);
    } catch (error) {
      if (error.code !== LOST) throw error;
      return this.#post("v1/queue", body);
    }
  }

  async #post(path, body) {
    const query = this.#ticket ? `?session=${encodeURIComponent(this.#ticket)}` : "";
    try {
      return await this.#api.post(path + query, { ...body, ticket: this.#ticket });
    } catch (error) {
      if (error.code === LOST) this.#ticket = null;
      throw error;
    }
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

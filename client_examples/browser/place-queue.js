// The queue for a place on a full server.

const PAUSE_MS = 2000; // without a ticket, no place in the queue is lost by asking less often
const FULL = new Set(["at-capacity", "too-many-requests"]);

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
        const session = await this.#api.post(this.#path("v1/sessions"), { ...body, ticket: this.#ticket });
        this.#ticket = null;
        return session;
      } catch (error) {
        if (!FULL.has(error.code)) throw error;
        await this.#wait(error, isStale);
      }
    }
  }

  async #wait(error, isStale) {
    for (;;) {
      const body = { ticket: this.#ticket, sessions: this.#known() };
      const standing = await this.#api.post(this.#path("v1/queue"), body);
      if (isStale()) throw error;
      this.#ticket = standing.ticket;
      // Who opens sessions too often may find that there are places.
      if (standing.ready) return error.code === "too-many-requests" && pause(1000 * error.afterS);
      this.#onStanding(standing, error);
      if (!standing.ticket) await pause(PAUSE_MS);
    }
  }

  // In a cluster, a ticket is for one worker.
  #path(path) {
    return this.#ticket ? `${path}?session=${encodeURIComponent(this.#ticket)}` : path;
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

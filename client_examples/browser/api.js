// Client of the server's HTTP API: URLs, tokens and errors.

const RENEW_AT = 0.6; // fraction of a token's lifetime
const FIRST_RENEWAL_S = 1; // a token that is handed over may be old, and this clock wrong
const RETRY_RENEWAL_S = 5;
const TOKEN_MS = 10_000; // the page's function returns a token within this time
const ANSWER_MS = 15_000; // the server answers a request within this time

/** An error to show to the user. `code` is stable and for programs, `message` is for people. */
export class LetsTalkError extends Error {
  constructor(code, message, { retry = false, afterS = 0, cause } = {}) {
    super(message, { cause });
    this.name = "LetsTalkError";
    this.code = code;
    this.retry = retry; // whether an automatic retry may help
    this.afterS = afterS;
  }
}

/** An HTTP client for one server. It sends and renews the token where there is one. */
export class Api {
  #base;
  #token;
  #isOpen = false;
  #timer = 0;
  #renewalMs = Infinity; // when the token is renewed, as `performance.now()` counts

  /** Id of the session, or null. Avatars are asked of its server, which may be one of several. */
  session = null;

  /**
   * @param {string} [url] URL of the server; by default where this module was loaded from.
   * @param {string|function} [token] a token, or a function (may be async) returning one.
   */
  constructor(url, token) {
    const home = new URL(".", import.meta.url).href.replace(/browser\/$/, "");
    this.#base = new URL(url ?? home, document.baseURI);
    if (!this.#base.pathname.endsWith("/")) this.#base.pathname += "/";
    this.#token = token;
    if (isRenewable(token)) this.#renewIn(FIRST_RENEWAL_S);
    this.open();
  }

  /** Return the full URL of a path on the server. */
  url(path) {
    return new URL(path, this.#base).href;
  }

  /** Return the path of the avatars, with a query of these parameters. */
  avatarsPath(parameters = {}) {
    const session = this.session ? { session: this.session } : {};
    const query = new URLSearchParams({ ...parameters, ...session }).toString();
    return query ? `v1/avatars?${query}` : "v1/avatars";
  }

  /** The token as it was last renewed, or null if there is none or a function returns it. */
  get latestToken() {
    return typeof this.#token === "string" ? this.#token : null;
  }

  /**
   * Return the token, asking the page's function for it if there is one.
   *
   * @throws {LetsTalkError} that of the function, or one that says that a retry may help.
   */
  async token() {
    if (typeof this.#token !== "function") return this.#token;
    try {
      return await within(TOKEN_MS, this.#token());
    } catch (cause) {
      if (cause instanceof LetsTalkError) throw cause;
      const options = { retry: true, cause };
      throw new LetsTalkError("unreachable", "No token could be fetched.", options);
    }
  }

  /**
   * Send a request and return the JSON or text of the response.
   *
   * @param {object} [options] those of `fetch`; by default, `signal` limits the wait to 15 s.
   * @throws {LetsTalkError} with the code and detail of the server's problem document.
   */
  async request(path, options = {}) {
    const response = await this.#fetch(path, options);
    const text = await response.text().catch(() => {
      throw unreachable();
    });
    const isJson = response.headers.get("content-type")?.includes("json");
    const body = isJson ? parseJson(text) : text;
    if (response.ok) return body;
    throw errorOf(response, body);
  }

  async #fetch(path, options) {
    const headers = new Headers(options.headers);
    const token = await this.token();
    if (token) headers.set("authorization", `Bearer ${token}`);
    const signal = options.signal ?? AbortSignal.timeout(ANSWER_MS);
    try {
      return await fetch(this.url(path), { ...options, headers, signal });
    } catch {
      throw unreachable();
    }
  }

  /** Return the STUN and TURN servers listed in the `Link` headers of a path. */
  async iceServers(path) {
    const response = await this.#fetch(path, { method: "OPTIONS" });
    return parseIceServers(response.headers.get("link") ?? "");
  }

  /** Send an object as JSON and return the response. */
  post(path, body) {
    const headers = { "content-type": "application/json" };
    return this.request(path, { method: "POST", headers, body: JSON.stringify(body) });
  }

  /** Renew the token before it expires, again after `close`. */
  open() {
    this.#isOpen = true;
    this.#scheduleRenewal();
  }

  /** Stop renewing the token. */
  close() {
    this.#isOpen = false;
    clearTimeout(this.#timer);
  }

  #renewIn(seconds) {
    this.#renewalMs = performance.now() + 1000 * Math.max(seconds, 1);
    this.#scheduleRenewal();
  }

  #scheduleRenewal() {
    clearTimeout(this.#timer);
    if (!this.#isOpen || this.#renewalMs === Infinity) return;
    this.#timer = setTimeout(() => this.#renew(), this.#renewalMs - performance.now());
  }

  async #renew() {
    this.#renewalMs = Infinity;
    try {
      const { token, expires_in_s: lifeS } = await this.post("v1/tokens", {});
      this.#token = token;
      this.#renewIn(RENEW_AT * lifeS);
    } catch (error) {
      // Any other error is reported by the next request that needs the token.
      if (error.retry) this.#renewIn(Math.max(RETRY_RENEWAL_S, error.afterS));
    }
  }
}

const unreachable = () =>
  new LetsTalkError("unreachable", "The server cannot be reached.", { retry: true });

/** Return what a promise resolves to, or fail after this time. */
function within(ms, promise) {
  let timer = 0;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`no answer within ${ms / 1000} s`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Parse a header such as `<turn:host>; rel="ice-server"; username="..."; credential="..."`. */
function parseIceServers(header) {
  return header
    .split(/,\s*(?=<)/)
    .filter((link) => link.includes('rel="ice-server"'))
    .map((link) => {
      const attribute = (name) => new RegExp(`${name}="([^"]*)"`).exec(link)?.[1];
      const server = { urls: /<([^>]*)>/.exec(link)[1] };
      const username = attribute("username");
      return username ? { ...server, username, credential: attribute("credential") } : server;
    });
}

/** Return whether a token is one that expires: a JWT, not an API key, which is used as it is. */
function isRenewable(token) {
  try {
    const text = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return Boolean(JSON.parse(atob(text)).exp);
  } catch {
    return false;
  }
}

function errorOf(response, body) {
  const retry = response.status === 429 || response.status >= 502;
  return new LetsTalkError(
    body?.code ?? `http-${response.status}`,
    body?.detail ?? `The server answered with HTTP status ${response.status}.`,
    { retry, afterS: Number(response.headers.get("retry-after")) || 0 },
  );
}

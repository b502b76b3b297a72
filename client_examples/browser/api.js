// The server's HTTP interface: addresses, tokens and refusals.

const RENEW_AT = 0.6; // of a token's life

/** Something went wrong that a person should know. `code` is stable, `message` is for reading. */
export class LetsTalkError extends Error {
  constructor(code, message, { retry = false, afterS = 0 } = {}) {
    super(message);
    this.name = "LetsTalkError";
    this.code = code;
    this.retry = retry; // whether trying again by itself may help
    this.afterS = afterS;
  }
}

/** Calls one server, with a token where it asks for one. */
export class Api {
  #base;
  #token;
  #timer = 0;

  /**
   * @param {string} [url] address of the server; by default where this module was served from.
   * @param {string|function} [token] a token, or a function (may be async) that gets one.
   */
  constructor(url, token) {
    const home = new URL(".", import.meta.url).href.replace(/browser\/$/, "");
    this.#base = new URL(url ?? home, document.baseURI);
    if (!this.#base.pathname.endsWith("/")) this.#base.pathname += "/";
    this.#token = token;
    if (typeof token === "string") this.#keepFresh();
  }

  /** Give the full address of something of the server. */
  address(path) {
    return new URL(path, this.#base).href;
  }

  async token() {
    return typeof this.#token === "function" ? this.#token() : this.#token;
  }

  /** Fetch; give the answer's JSON or text, or raise what the server's problem document says. */
  async request(path, options = {}) {
    const response = await this.#fetch(path, options);
    const type = response.headers.get("content-type") ?? "";
    const body = await (type.includes("json") ? response.json().catch(() => null) : response.text());
    if (response.ok) return body;
    throw refusal(response, body);
  }

  async #fetch(path, options) {
    const headers = new Headers(options.headers);
    const token = await this.token();
    if (token) headers.set("authorization", `Bearer ${token}`);
    try {
      return await fetch(this.address(path), { ...options, headers });
    } catch {
      throw new LetsTalkError("unreachable", "The server cannot be reached.", { retry: true });
    }
  }

  /** The STUN and TURN servers that the server names in its `Link` headers. */
  async iceServers(path) {
    const response = await this.#fetch(path, { method: "OPTIONS" });
    return parseLinks(response.headers.get("link") ?? "");
  }

  /** Send an object as JSON. */
  post(path, body) {
    const headers = { "content-type": "application/json" };
    return this.request(path, { method: "POST", headers, body: JSON.stringify(body) });
  }

  /** Stop renewing the token. */
  close() {
    clearTimeout(this.#timer);
  }

  #keepFresh() {
    const { exp, iat } = claims(this.#token);
    if (!exp) return; // an API key, or a token of another make: as it is
    const lifeS = exp - (iat ?? Date.now() / 1000);
    const waitS = exp - lifeS * (1 - RENEW_AT) - Date.now() / 1000;
    this.#timer = setTimeout(() => this.#renew(), 1000 * Math.max(waitS, 1));
  }

  async #renew() {
    try {
      this.#token = (await this.post("v1/tokens", {})).token;
      this.#keepFresh();
    } catch {
      // The next request that needs it says so.
    }
  }
}

/** Read `<turn:host>; rel="ice-server"; username="..."; credential="..."` and its like. */
function parseLinks(header) {
  return header
    .split(/,\s*(?=<)/)
    .filter((link) => link.includes('rel="ice-server"'))
    .map((link) => {
      const part = (name) => new RegExp(`${name}="([^"]*)"`).exec(link)?.[1];
      const server = { urls: /<([^>]*)>/.exec(link)[1] };
      const username = part("username");
      return username ? { ...server, username, credential: part("credential") } : server;
    });
}

function claims(token) {
  try {
    const text = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(text));
  } catch {
    return {};
  }
}

function refusal(response, body) {
  const retry = response.status === 429 || response.status >= 502;
  return new LetsTalkError(
    body?.code ?? `http-${response.status}`,
    body?.detail ?? `The server answered with status ${response.status}.`,
    { retry, afterS: Number(response.headers.get("retry-after")) || 0 },
  );
}

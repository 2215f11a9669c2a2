// What the page asks of its server: one question at a time is answered, refused, or asked again.

const MOST_TRIES = 10;
const LONGEST_WAIT = 60;

/** Why there is no answer, in one line. */
export class Refusal extends Error {
  constructor(status, line, retryAfter = 1) {
    super(line);
    this.status = status;
    this.retryAfter = Math.min(Math.max(retryAfter || 1, 1), LONGEST_WAIT);
  }
}

let key = null;
let askForKey = null;

/** Use a key from now on. Headers carry no others than ASCII letters, digits and signs. */
export function setKey(text) {
  if (!/^[\x21-\x7e]+$/.test(text)) throw new Refusal(401, "A key has letters, digits and signs, and no spaces.");
  key = text;
}

/** Say what asks the user for a key: a function that gives a promise. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function once(path, options) {
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server cannot be reached.");
  }
  const content = await response.json().catch(() => null);
  if (response.ok && content !== null) return content;
  const line = content?.error ?? `The server answered with status ${response.status}.`;
  throw new Refusal(response.status, line, Number(response.headers.get("Retry-After")));
}

/**
 * Ask, and ask again while the server is busy or wants a key.
 * @param {string} path - below the page's own address, so that a proxy may put the page anywhere
 * @param {RequestInit} options
 * @param {(seconds: number) => void} waiting - is told of every second that passes
 */
export async function ask(path, options = {}, waiting = () => {}) {
  for (let tries = 1; ; tries += 1) {
    const used = key;
    try {
      return await once(path, options);
    } catch (error) {
      if (error.status === 401) {
        if (used === key) await askForKey(key === null ? "" : "The server does not know this key.");
      } else if (error.status === 503 && tries < MOST_TRIES) {
        for (let left = Math.ceil(error.retryAfter); left > 0; left -= 1) {
          waiting(left);
          await sleep(1000, options.signal);
        }
        waiting(0);
      } else {
        throw error;
      }
    }
  }
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

/** Put a file into the body of a request, with its name. */
export function body(file) {
  const form = new FormData();
  form.append("image", file, file.name || "image");
  return form;
}

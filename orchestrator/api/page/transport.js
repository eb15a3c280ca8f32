// HTTP: one request, and server-sent events by fetch. Throws HttpError for a refusal, TypeError where nothing answers.

import { token } from "./model.js";

// A start that fails lives for a second: rarer tries would miss it, and a refused connection costs nothing.
export const retry_s = (misses) => (misses < 2 ? 0.4 : misses < 120 ? 1 : 3);
export const POLL_S = 2;
const SILENCE_S = 25; // the server repeats itself every 10 s

export const sleep = (seconds, signal) =>
  new Promise((resolve) => {
    const id = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(id), resolve()), { once: true });
  });

export class HttpError extends Error {
  constructor(status, detail) {
    super(detail || `HTTP ${status}`);
    this.status = status;
  }
}

function headers(more) {
  return token() ? { ...more, Authorization: `Bearer ${token()}` } : more;
}

/** Read server-sent events by fetch (EventSource can send no Authorization). Returns when the stream ends. */
export async function stream(url, onEvent, control = new AbortController()) {
  let quiet = setTimeout(() => control.abort(), SILENCE_S * 1000);
  try {
    const response = await fetch(url, {
      headers: headers({ Accept: "text/event-stream" }),
      cache: "no-store",
      signal: control.signal,
    });
    if (!response.ok) throw new HttpError(response.status);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(quiet);
      quiet = setTimeout(() => control.abort(), SILENCE_S * 1000);
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        let event = "message";
        let id;
        const data = [];
        for (const line of block.split(/\r?\n/)) {
          if (line.startsWith("event:")) event = line.slice(6).trim();
          else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
          else if (line.startsWith("id:")) id = line.slice(3).trim();
        }
        if (data.length) onEvent(event, JSON.parse(data.join("\n")), id);
      }
    }
  } finally {
    clearTimeout(quiet);
  }
}

export async function ask(path, options = {}) {
  const response = await fetch(path, {
    cache: "no-store",
    ...options,
    headers: headers({ Accept: "application/json", ...options.headers }),
  });
  const isJson = (response.headers.get("Content-Type") ?? "").includes("json");
  const body = isJson ? await response.json() : null;
  if (!response.ok) throw new HttpError(response.status, body?.detail ?? body?.error);
  return body;
}

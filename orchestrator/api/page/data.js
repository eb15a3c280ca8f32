// What the views ask of the API: a view names a path while it is drawn, and that path is kept fresh while it is shown.

import { HttpError, ask } from "./transport.js";

const kept = new Map(); // path → what is known of it
const FORGOTTEN_MS = 60_000;
let drawing = 0;
let askForMore = () => {};

/** Call `listener` when something is wanted that is not there yet. */
export function onWanted(listener) {
  askForMore = listener;
}

/** A drawing begins: what it does not ask for is not kept fresh any longer. */
export function beginDrawing() {
  drawing += 1;
}

/** What is known of that path: `{ data, error }`. It is asked again every `every_s`, and sooner (`live`) at events. */
export function get(path, { every_s = 15, live = true } = {}) {
  let one = kept.get(path);
  if (!one) {
    one = { path, data: null, error: null, at: 0, loading: false, outdated: true };
    kept.set(path, one);
  }
  Object.assign(one, { wanted: drawing, wanted_at: Date.now(), every_s, live });
  if (one.outdated && !one.loading && !one.at) askForMore();
  return one;
}

/** Something happened: what is live is outdated; with `all`, so is the rest. */
export function outdate(all = false) {
  for (const one of kept.values()) if (one.live || all) one.outdated = true;
}

/** Forget everything: what comes next may be asked with another token. */
export function forget() {
  kept.clear();
}

/** Ask for all that is shown and not fresh. Throws HttpError 401 where the token is refused. */
export async function refresh() {
  const now = Date.now();
  for (const [path, one] of kept) if (now - one.wanted_at > FORGOTTEN_MS) kept.delete(path);
  const due = [...kept.values()].filter(
    (one) => one.wanted === drawing && !one.loading && (one.outdated || now - one.at > one.every_s * 1000),
  );
  await Promise.all(due.map(load));
}

async function load(one) {
  one.loading = true;
  one.outdated = false;
  try {
    one.data = await ask(one.path);
    one.error = null;
  } catch (error) {
    if (!(error instanceof HttpError || error instanceof TypeError)) throw error;
    if (error.status === 401) throw error;
    one.error = error instanceof TypeError ? "The server does not answer." : error.message;
    one.status = error.status;
  } finally {
    one.at = Date.now();
    one.loading = false;
  }
}

/** How soon the next of what is shown has to be asked again, in seconds. */
export const nextDue_s = () =>
  Math.min(15, ...[...kept.values()].filter((one) => one.wanted === drawing).map((one) => one.every_s));

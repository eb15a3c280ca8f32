// What the page knows: the newest snapshot of the start, the jobs, the link to the server. Imports nothing.

export const PHASES = ["connecting", "locking", "extensions", "migrating", "launching"];

export const model = {
  skew_ms: 0,
  start: null, // the newest snapshot of /health/events
  heard_at: 0,
  link: "away", // live | poll | away
  link_retry_at: 0,
  misses: 0,
  ended: null, // the last snapshot of a process that has said good-bye
  failure: null, // { facts, at, phase, started_at }: kept over the process's end
  jobs_link: "away",
  jobs_misses: 0, // streams of job events that brought nothing, in a row
  wants_token: false,
  busy: new Set(),
  toast: null,
};

/** Server time in ms: the two clocks need not agree. It stands still while nothing is heard: so do the timers. */
export function now() {
  return (model.link === "away" ? model.heard_at : Date.now()) + model.skew_ms;
}

export const ms = (iso) => (iso ? Date.parse(iso) : null);

export const isSameProcess = (a, b) => Math.abs(ms(a) - ms(b)) < 1000;

const TOKEN = "orchestrator.token";

/** The token of this tab, else the one that this browser keeps. */
export const token = () => sessionStorage.getItem(TOKEN) ?? localStorage.getItem(TOKEN) ?? "";

export function keepToken(given, inBrowser) {
  sessionStorage.setItem(TOKEN, given);
  if (inBrowser) localStorage.setItem(TOKEN, given);
}

export function forgetKeptToken() {
  sessionStorage.removeItem(TOKEN);
  localStorage.removeItem(TOKEN);
}

const listeners = [];

/** Call `listener` after each change of the model. */
export const onChange = (listener) => listeners.push(listener);

/** Say that the model has changed. */
export function changed() {
  for (const listener of listeners) listener();
}

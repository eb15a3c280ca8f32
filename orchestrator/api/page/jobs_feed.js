// Everything behind the token: read whole at a wake, and again when an event says that something changed.

import { TOKEN, changed, model, token } from "./model.js";
import { HttpError, POLL_S, ask, retry_s, sleep, stream } from "./transport.js";

const JOBS_EVERY_S = 15; // live; without the stream every POLL_S × 2

const JOBS_GAP_MS = 700;

/** Everything behind the gate: read whole at a wake, and again when an event says that something changed. */
export const jobs = {
  again: null,
  timer: 0,
  loading: false,
  following: false,
  isStale: false,
  slowAt: 0, // when schedules and starts were read

  wake() {
    model.wants_token = false;
    this.slowAt = 0;
    this.soon(0);
    if (!this.following) this.follow();
  },

  soon(wait_ms = JOBS_GAP_MS) {
    if (this.timer) return;
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.load();
    }, wait_ms);
  },

  mayRead() {
    const reads = model.start?.access?.reads;
    const allowed = reads === "open" || (reads === "token" && Boolean(token()));
    return model.start?.phase === "ready" && allowed && !model.wants_token;
  },

  async load() {
    clearTimeout(this.again);
    this.isStale = this.loading || document.hidden; // then it is read again: after this, or when somebody looks
    if (!this.mayRead() || this.isStale) return;
    this.loading = true;
    try {
      // What seldom changes is not asked for at every event.
      const isSlowDue = Date.now() - this.slowAt > 10_000;
      const [queues, runs, failed, schedules, starts] = await Promise.all([
        ask("api/queues"),
        ask("api/jobs?state=running&limit=20"),
        ask("api/jobs?state=failed&limit=10"),
        isSlowDue ? ask("api/schedules") : model.jobs.schedules,
        isSlowDue ? ask("api/starts?limit=12") : model.jobs.starts,
      ]);
      if (isSlowDue) this.slowAt = Date.now();
      if (!this.mayRead()) return; // the token was forgotten meanwhile
      model.jobs = { queues, running: runs, failed, schedules, starts };
      model.jobs_error = null;
    } catch (error) {
      if (!(error instanceof HttpError || error instanceof TypeError)) throw error;
      if (error.status === 401) refuseToken();
      else model.jobs_error = error instanceof TypeError ? "no answer" : error.message;
    } finally {
      this.loading = false;
      this.again = setTimeout(() => this.load(), (model.jobs_link === "live" ? JOBS_EVERY_S : POLL_S * 2) * 1000);
      if (this.isStale) this.soon();
      changed();
    }
  },

  async follow() {
    this.following = true;
    let misses = 0;
    while (this.mayRead()) {
      try {
        await stream("api/events", (event) => {
          misses = model.jobs_misses = 0;
          model.jobs_link = "live";
          if (event !== "phase") this.soon();
        });
      } catch (error) {
        if (error.status === 401) refuseToken();
        else if (!(error instanceof TypeError || error instanceof HttpError || error.name === "AbortError"))
          throw error;
      }
      model.jobs_link = "away";
      changed();
      misses += 1;
      model.jobs_misses = misses;
      await sleep(retry_s(misses));
    }
    this.following = false;
  },
};

/** The whole of a job, for its trace: read when somebody opens it. */
export async function readJob(id) {
  if (model.whole.get(id)) return;
  model.whole.set(id, {});
  try {
    model.whole.set(id, await ask(`api/jobs/${encodeURIComponent(id)}`));
  } catch (error) {
    if (!(error instanceof HttpError || error instanceof TypeError)) throw error;
    model.whole.set(id, { problem: error.message });
  }
  changed();
}

export function refuseToken() {
  if (token()) sessionStorage.removeItem(TOKEN);
  model.wants_token = true;
  changed();
}

// Everything behind the token: what the views want (data.js) is read at a wake, and again when an event says so.

import { forget, nextDue_s, onWanted, outdate, refresh } from "./data.js";
import { changed, forgetKeptToken, model, token } from "./model.js";
import { HttpError, POLL_S, retry_s, sleep, stream } from "./transport.js";

const JOBS_GAP_MS = 700;

export const jobs = {
  again: null,
  timer: 0,
  loading: false,
  following: false,
  isStale: false,

  wake() {
    model.wants_token = false;
    forget();
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
      await refresh();
      if (!this.mayRead()) forget(); // the token was forgotten meanwhile
    } catch (error) {
      if (error.status !== 401) throw error;
      refuseToken();
    } finally {
      this.loading = false;
      const every_s = model.jobs_link === "live" ? nextDue_s() : Math.min(nextDue_s(), POLL_S * 2);
      this.again = setTimeout(() => {
        if (model.jobs_link !== "live") outdate();
        this.load();
      }, every_s * 1000);
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
          if (event === "phase") return;
          outdate();
          this.soon();
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

onWanted(() => jobs.soon(0));

export function refuseToken() {
  if (token()) forgetKeptToken();
  model.wants_token = true;
  forget();
  changed();
}

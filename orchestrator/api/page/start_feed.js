// The start, followed for ever: by the stream, by polling, or by tries that grow apart.

import { jobs } from "./jobs_feed.js";
import { changed, model, ms } from "./model.js";
import { HttpError, POLL_S, ask, retry_s, sleep, stream } from "./transport.js";

function tell(snapshot, isEnd) {
  const before = model.start;
  model.skew_ms = ms(snapshot.timestamp) - Date.now();
  model.heard_at = Date.now();
  model.start = snapshot;
  model.ended = isEnd ? snapshot : null;
  if (snapshot.failure) {
    model.failure = {
      facts: snapshot.failure,
      at: snapshot.timestamp,
      history: snapshot.history,
      started_at: snapshot.started_at,
    };
  } else if (snapshot.phase === "ready") model.failure = null;
  if (snapshot.phase === "ready" && before?.phase !== "ready") jobs.wake();
  changed();
}

let control = null;

/** Follow it anew: with another token more, or less, is told. */
export const followAgain = () => control?.abort();

/** The start, for ever: the stream; where it brings nothing, polling; where nothing answers, tries that grow apart. */
export async function followStart() {
  for (;;) {
    let told = false;
    let ended = false;
    const silent = setTimeout(() => {
      if (!told) pollOnce().then((answered) => answered && link("poll"));
    }, 4000);
    try {
      control = new AbortController();
      const hear = (event, data) => {
        told = true;
        ended = event === "end";
        model.misses = 0;
        link("live");
        if (event === "state" || event === "end") tell(data, event === "end");
      };
      await stream("health/events", hear, control);
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof HttpError || error.name === "AbortError")) throw error;
    } finally {
      clearTimeout(silent);
    }
    if (!ended && !told && (await pollOnce())) {
      link("poll");
      for (let n = 0; n < 15 && (await sleep(POLL_S), await pollOnce()); n++);
      continue;
    }
    const wait_s = retry_s(model.misses);
    model.misses += 1;
    model.link_retry_at = Date.now() + wait_s * 1000;
    if (ended || model.misses > 1) link("away");
    await sleep(wait_s);
  }
}

async function pollOnce() {
  try {
    tell(await ask("health/events"), false);
    model.misses = 0;
    return true;
  } catch (error) {
    if (error instanceof TypeError || error instanceof HttpError) return false;
    throw error;
  }
}

function link(state) {
  model.link = state;
  changed();
}

// Queues and their throughput.

import { h } from "./dom.js";
import { age, count, plural } from "./words.js";

export function part(key, title, aside, ...body) {
  return h(
    "section",
    { class: "part", key, "aria-labelledby": `h-${key}` },
    h("div", { class: "head" }, h("h2", { id: `h-${key}` }, title), aside ? h("p", null, aside) : null),
    body,
  );
}

export function queuesPart({ queues, workers }) {
  const alive = (workers ?? []).filter((one) => one.is_alive !== false);
  const slots = alive.reduce((sum, one) => sum + (one.concurrency ?? 0), 0);
  return part(
    "queues",
    "Queues",
    workers
      ? alive.length
        ? `${plural(alive.length, "worker")}, ${plural(slots, "slot")}`
        : h("span", { class: queues?.some((one) => one.counts.queued) ? "bad" : null }, "No worker is there")
      : null,
    queues?.length
      ? h("div", { class: "cards" }, queues.map(card))
      : h("p", { class: "empty" }, "No queue has had a job yet."),
  );
}

function card({ name, counts, oldest_queued_s: oldest_s, throughput_per_s: rate, ended_per_minute: minutes }) {
  const shown = [
    ["queued", "waiting"],
    ["running", "running"],
    ["scheduled", "later"],
    ["failed", "failed"],
  ];
  const rated = !rate
    ? "idle for a minute"
    : rate >= 1
      ? `${count(Math.round(rate))} a second`
      : `${count(Math.round(rate * 60))} a minute`;
  return h(
    "article",
    { class: "card", key: name, "aria-label": `Queue ${name}` },
    h("h3", null, name),
    h(
      "dl",
      { class: "counts" },
      shown.map(([state, label]) =>
        h(
          "div",
          { class: !counts[state] ? "zero" : state === "failed" ? "bad" : "" },
          h("dt", null, label),
          h("dd", null, count(counts[state] ?? 0)),
        ),
      ),
    ),
    h(
      "p",
      { class: "more" },
      h("span", null, oldest_s === null || oldest_s === undefined ? "nothing waits" : `oldest waits ${age(oldest_s)}`),
      h("span", null, rated),
    ),
    spark(minutes ?? []),
  );
}

/** Jobs that ended in each minute, as a line on its own area. */
function spark(minutes) {
  const frame = { class: "spark", viewBox: "0 0 100 48", preserveAspectRatio: "none" };
  const most = Math.max(1, ...minutes);
  const points = (minutes.length > 1 ? minutes : [0, 0]).map(
    (n, i, all) => `${((100 * i) / (all.length - 1)).toFixed(2)} ${(46 - (42 * n) / most).toFixed(2)}`,
  );
  const total = minutes.reduce((sum, n) => sum + n, 0);
  const label = `${plural(total, "job")} ended in ${minutes.length} minutes, at most ${count(Math.max(0, ...minutes))} in one`;
  return h(
    "svg",
    { ...frame, role: "img", "aria-label": label },
    h("title", null, label),
    h("path", { class: "area", d: `M0 48 L${points.join(" L")} L100 48 Z` }),
    h("path", { class: "line", d: `M${points.join(" L")}` }),
  );
}

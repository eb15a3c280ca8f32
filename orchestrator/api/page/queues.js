// Queues: what waits, runs and failed, how much ends; and workers.

import { button } from "./actions.js";
import { chart } from "./chart.js";
import { get } from "./data.js";
import { h } from "./dom.js";
import { link, missing, part, tag } from "./parts.js";
import { age, count, plural } from "./words.js";

export function queuesPart() {
  const one = get("api/queues", { every_s: 5 });
  const { queues = [], workers = [] } = one.data ?? {};
  const alive = workers.filter((worker) => worker.is_alive);
  const slots = alive.reduce((sum, worker) => sum + worker.concurrency, 0);
  const aside = !one.data
    ? null
    : alive.length
      ? `${plural(alive.length, "worker")}, ${plural(slots, "slot")}`
      : h("span", { class: queues.some((queue) => queue.counts.queued) ? "bad" : null }, "No worker is there");
  return part(
    "queues",
    "Queues",
    aside,
    missing(one) ??
      (queues.length
        ? h("div", { class: "cards" }, queues.map(card))
        : h("p", { class: "empty" }, "No queue has had a job yet.")),
  );
}

/** How fast it goes; a queue where much waits and nothing ends is no idle one. */
function pace({ counts, throughput_per_s: rate, paused_at: paused }) {
  if (rate >= 1) return `${count(Math.round(rate))} a second`;
  if (rate) return `${count(Math.round(rate * 60))} a minute`;
  if (paused) return "paused";
  if (counts.running) return "none ended in the last minute";
  if (counts.queued) return h("span", { class: "warn" }, "nobody takes these jobs");
  return "idle";
}

function card(queue) {
  const { name, counts, oldest_queued_s: oldest_s, ended_per_minute: minutes, paused_at: paused } = queue;
  const shown = [
    ["queued", "waiting"],
    ["running", "running"],
    ["scheduled", "later"],
    ["failed", "failed"],
  ];
  const path = `api/queues/${encodeURIComponent(name)}`;
  return h(
    "article",
    { class: `card${paused ? " paused" : ""}`, key: name, "aria-label": `Queue ${name}` },
    h(
      "div",
      { class: "top" },
      h("h3", null, link(["jobs"], { queue: name }, name)),
      paused
        ? [tag("paused"), button(`resume-q-${name}`, "Resume", `${path}/resume`, `${name} goes on.`, `queue ${name}`)]
        : button(`pause-q-${name}`, "Pause", `${path}/pause`, `${name} is paused: what runs goes on.`, `queue ${name}`, { kind: "plain" }),
    ),
    h(
      "dl",
      { class: "counts" },
      shown.map(([state, label]) =>
        h(
          "div",
          { class: !counts[state] ? "zero" : state === "failed" ? "bad" : "" },
          h("dt", null, label),
          h("dd", null, link(["jobs"], { queue: name, state }, count(counts[state] ?? 0), { "aria-label": `${counts[state] ?? 0} ${label} in ${name}` })),
        ),
      ),
    ),
    h("p", { class: "more" }, h("span", null, oldest_s === null ? "nothing waits" : `oldest waits ${age(oldest_s)}`), h("span", null, pace(queue))),
    chart(`queue-${name}`, minutes, "job"),
  );
}

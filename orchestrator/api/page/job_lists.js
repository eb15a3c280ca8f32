// Jobs that run, and jobs that failed.

import { button } from "./actions.js";
import { h } from "./dom.js";
import { readJob } from "./jobs_feed.js";
import { model } from "./model.js";
import { part } from "./queues.js";
import { ago, count, plural, since, timer } from "./words.js";

function jobTitle(job) {
  return h(
    "div",
    { class: "title" },
    h("b", null, job.name),
    h("span", { class: "id" }, `#${job.id}`),
    job.attempt > 1 ? h("span", { class: "id" }, `attempt ${job.attempt} of ${job.max_attempts}`) : null,
  );
}

export function runningPart(list) {
  return part(
    "running",
    "Running",
    list.length ? plural(list.length, "job") : null,
    list.length
      ? h(
          "ul",
          { class: "list" },
          list.map((job) => {
            const { done, total, note } = job.progress ?? {};
            const percent = total ? Math.min(100, (100 * done) / total) : null;
            return h(
              "li",
              { key: job.id },
              h("div", { class: "what" }, jobTitle(job), note ? h("p", { class: "said" }, note) : null),
              h(
                "div",
                { class: "acts" },
                percent === null ? null : h("span", null, `${count(done)} of ${count(total)}`),
                job.started_at ? timer(since(job.started_at)) : null,
                job.cancel_requested
                  ? h("span", null, "is being cancelled")
                  : button(
                      `cancel-${job.id}`,
                      "Cancel",
                      `api/jobs/${encodeURIComponent(job.id)}/cancel`,
                      `Job #${job.id} is cancelled.`,
                      `${job.name} #${job.id}`,
                    ),
              ),
              h(
                "div",
                { class: "wide" },
                h(
                  "span",
                  {
                    class: `meter${percent === null ? " unknown" : ""}`,
                    role: "progressbar",
                    "aria-label": `Progress of ${job.name} #${job.id}`,
                    "aria-valuemin": percent === null ? null : 0,
                    "aria-valuemax": percent === null ? null : 100,
                    "aria-valuenow": percent === null ? null : Math.round(percent),
                  },
                  h("i", { vars: { "--part": `${percent ?? 30}%` } }),
                ),
              ),
            );
          }),
        )
      : h("p", { class: "empty" }, "Nothing runs."),
  );
}

export function failedPart(list) {
  return part(
    "failed",
    "Recent failures",
    null,
    list.length
      ? h(
          "ul",
          { class: "list" },
          list.map((job) => {
            const whole = model.whole.get(job.id);
            const lines = whole?.error?.trace;
            const trace =
              whole?.problem ??
              (Array.isArray(lines) ? lines.join("\n") : lines) ??
              (whole?.id ? "There is no trace." : "Reading…");
            const about = `${job.name} #${job.id}`;
            return h(
              "li",
              { key: job.id },
              h(
                "div",
                { class: "what" },
                jobTitle(job),
                h(
                  "p",
                  { class: "said" },
                  h("span", { class: "bad" }, whole?.error?.type ? `${whole.error.type}: ` : ""),
                  job.error_message ?? "without a message",
                ),
              ),
              h(
                "div",
                { class: "acts" },
                job.finished_at ? timer(ago(job.finished_at)) : null,
                button(
                  `retry-${job.id}`,
                  "Retry",
                  `api/jobs/${encodeURIComponent(job.id)}/retry`,
                  `Job #${job.id} is queued again.`,
                  about,
                ),
              ),
              h(
                "details",
                { class: "wide", on: { toggle: (event) => event.target.open && readJob(job.id) } },
                h("summary", null, "Trace"),
                h("pre", { tabindex: 0, role: "region", "aria-label": `Trace of ${about}` }, h("code", null, trace)),
              ),
            );
          }),
        )
      : h("p", { class: "empty" }, "No job has failed lately."),
  );
}

// One job: what it was given and gave, its attempts, its log as it grows, who asked for it; and to run it again.

import { act, button, canAct, copyButton } from "./actions.js";
import { get } from "./data.js";
import { h } from "./dom.js";
import { jobActions, meter } from "./job_lists.js";
import { facts, json, link, missing, moment, part, stateOf, tag } from "./parts.js";
import { go } from "./router.js";
import { ms } from "./model.js";
import { clock, count, since, span, timer, words } from "./words.js";

const LINES = 200;

const duration = (from, until) => (from && until ? span((ms(until) - ms(from)) / 1000) : null);

function told(job) {
  return facts([
    ["State", tag(stateOf(job))],
    ["Queue", link(["jobs"], { queue: job.queue }, job.queue)],
    ["Schedule", job.schedule && link(["schedules", job.schedule], null, job.schedule)],
    ["Attempt", `${job.attempt} of ${job.max_attempts}`],
    ["Priority", job.priority || null],
    ["Added", moment(job.created_at)],
    ["Due", job.state === "scheduled" ? moment(job.run_at) : null],
    ["Waited", duration(job.run_at, job.started_at)],
    ["Ran", job.state === "running" ? timer(since(job.started_at)) : duration(job.started_at, job.finished_at)],
    ["Ended", job.finished_at && moment(job.finished_at)],
    ["Time limit", job.timeout_s && span(job.timeout_s)],
    ["Worker", job.worker],
    ["Dedupe key", job.dedupe_key && h("code", null, job.dedupe_key)],
    ["Asked for by", asked(job)],
  ]);
}

/** Who added it and changed it, as the audit trail has it. */
function asked(job) {
  if (!job.changes.length) return job.schedule ? "its schedule" : null;
  return h(
    "ul",
    { class: "plain" },
    job.changes.map((one) => {
      const verb = one.path.split("/").at(-1);
      const did = { cancel: "cancelled by", retry: "retried by", again: "added like another by", trigger: "run now by" };
      return h("li", null, `${did[verb] ?? "added by"} ${one.by} from ${one.address}, `, h("span", { title: one.at }, clock(one.at)));
    }),
  );
}

function attempts(job) {
  if (!job.attempts.length) return null;
  return part(
    "attempts",
    "Attempts",
    null,
    h(
      "ol",
      { class: "list", role: "list" },
      job.attempts
        .map((one) => {
          const trace = Array.isArray(one.error?.trace) ? one.error.trace.join("\n") : one.error?.trace;
          return h(
            "li",
            { key: one.attempt },
            h(
              "div",
              { class: "what" },
              h("div", { class: "title" }, h("b", null, `Attempt ${one.attempt}`), tag(words(one.outcome))),
              one.error ? h("p", { class: "said" }, h("span", { class: "bad" }, one.error.type ? `${one.error.type}: ` : ""), one.error.message ?? "") : null,
            ),
            h("div", { class: "acts" }, duration(one.started_at, one.finished_at), h("span", { title: one.finished_at }, clock(one.finished_at))),
            trace
              ? h(
                  "details",
                  { class: "wide", open: one.attempt === job.attempt, key: "trace" },
                  h("summary", null, "Trace"),
                  h("pre", { tabindex: 0, role: "region", "aria-label": `Trace of attempt ${one.attempt}` }, h("code", null, trace)),
                )
              : null,
          );
        })
        .reverse(),
    ),
  );
}

function log(job) {
  const isRunning = job.state === "running";
  const pages = [get(`api/jobs/${job.id}/log?limit=${LINES}`, { every_s: isRunning ? 1.5 : 15 })];
  // A long log is read page by page, as far as somebody wants it.
  for (let n = 1; n < (shownPages.get(job.id) ?? 1); n++) {
    const { data } = pages.at(-1);
    if (!data?.next_cursor) break;
    pages.push(get(`api/jobs/${job.id}/log?limit=${LINES}&cursor=${data.next_cursor}`, { every_s: isRunning ? 1.5 : 15 }));
  }
  const lines = pages.flatMap((one) => one.data?.lines ?? []);
  if (!lines.length) return null;
  const more = pages.at(-1).data?.next_cursor;
  return part(
    "log",
    "Log",
    isRunning ? "live" : null,
    h(
      "ol",
      { class: "log", tabindex: 0, role: "list", "aria-label": "Log" },
      lines.map((line) =>
        h(
          "li",
          { key: line.id, class: line.level },
          h("span", { class: "at", title: line.at }, new Date(ms(line.at)).toLocaleTimeString("en-GB")),
          h("span", { class: "level" }, line.level),
          h("b", null, line.event),
          Object.entries(line.facts ?? {}).map(([name, value]) =>
            h("span", { class: "fact" }, `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`),
          ),
        ),
      ),
    ),
    more
      ? h("button", { type: "button", on: { click: () => showMore(job.id) } }, `More lines after these ${count(lines.length)}`)
      : null,
  );
}

const shownPages = new Map();

function showMore(id) {
  shownPages.set(id, (shownPages.get(id) ?? 1) + 1);
  get(`api/jobs/${id}/log?limit=${LINES}`);
}

function again(job) {
  if (!canAct()) return null;
  const submit = async (event) => {
    event.preventDefault();
    const form = event.target;
    const error = form.querySelector("[role=alert]");
    let payload;
    try {
      payload = JSON.parse(form.querySelector("textarea").value);
    } catch (problem) {
      error.textContent = `This is no JSON: ${problem.message}`;
      return;
    }
    error.textContent = "";
    const made = await act(`again-${job.id}`, `api/jobs/${job.id}/again`, (one) => `Job #${one.id} is queued.`, { body: { payload } });
    if (made) go(["jobs", String(made.id)]);
  };
  const text = JSON.stringify(job.payload, null, 2);
  return h(
    "details",
    { class: "again", key: "again" },
    h("summary", null, "Run again, with this payload or another"),
    h(
      "form",
      { on: { submit } },
      h("label", { for: "again-payload" }, "Payload (JSON)"),
      h("textarea", { id: "again-payload", rows: Math.min(16, text.split("\n").length + 1), spellcheck: "false", value: text }),
      h("p", { role: "alert", class: "bad" }),
      h("button", { type: "submit", class: "strong" }, "Add the job"),
    ),
  );
}

export function jobView(id) {
  // Who asked for a change is written a moment after it, and no event tells of that.
  const one = get(`api/jobs/${encodeURIComponent(id)}`, { every_s: 3 });
  if (missing(one)) return part("job", `Job #${id}`, null, missing(one));
  const job = one.data;
  const { done, total, note } = job.progress ?? {};
  const finished = ["succeeded", "failed", "cancelled"].includes(job.state);
  return [
    part(
      "job",
      [link(["jobs"], { name: job.name }, job.name), h("span", { class: "id" }, ` #${job.id}`)],
      h("div", { class: "acts" }, jobActions(job), finished ? discard(job) : null),
      job.state === "running"
        ? h("div", { class: "wide progress" }, meter(job), h("p", { class: "soft" }, total ? `${count(done)} of ${count(total)}` : "", note ? ` ${note}` : ""))
        : null,
      told(job),
      again(job),
    ),
    part("payload", "Payload", copyButton(JSON.stringify(job.payload, null, 2), "the payload"), json(job.payload)),
    job.output === null ? null : part("output", "Output", copyButton(JSON.stringify(job.output, null, 2), "the output"), json(job.output)),
    attempts(job),
    log(job),
  ];
}

/** Removing is of the bulk actions: a job that is finished goes by a filter that names it alone. */
function discard(job) {
  return button(`discard-${job.id}`, "Discard", `api/jobs/${job.id}`, `Job #${job.id} is removed.`, `${job.name} #${job.id}`, {
    method: "DELETE",
    sure: `Remove job #${job.id} for good?`,
    kind: "plain",
    after: () => go(["jobs"], { name: job.name }),
  });
}

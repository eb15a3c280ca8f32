// Schedules: the list, and one with its last runs, where it can be edited, paused and run.

import { act, button, canAct } from "./actions.js";
import { cronWords } from "./cron_words.js";
import { get } from "./data.js";
import { h } from "./dom.js";
import { jobTitle } from "./job_lists.js";
import { facts, field, json, link, missing, moment, part, stateOf, tag } from "./parts.js";
import { clock, timer, until, ago } from "./words.js";

const SHOWN = 12;

const path = (name) => `api/schedules/${encodeURIComponent(name)}`;

/** A cron line in words, with its own form and its zone below. */
function cron(one) {
  const words = cronWords(one.cron);
  return [
    words ? h("span", null, words) : h("code", null, one.cron),
    h("small", null, words ? h("code", null, one.cron) : null, words ? " " : "", one.timezone),
  ];
}

const nextRun = (one) =>
  !one.enabled
    ? tag("paused")
    : one.next_run_at
      ? [timer(until(one.next_run_at)), h("small", { title: one.next_run_at }, clock(one.next_run_at))]
      : h("span", { class: "soft" }, "not known");

function lastRun(one) {
  if (!one.last_job_id || !one.last_job_at) return one.last_run_at ? moment(one.last_run_at) : h("span", { class: "soft" }, "never");
  return [
    link(["jobs", String(one.last_job_id)], null, one.last_job_state, { class: `tag ${one.last_job_state === "failed" ? "bad" : ""}` }),
    " ",
    timer(ago(one.last_job_at)),
    h("small", { title: one.last_job_at }, clock(one.last_job_at)),
  ];
}

function actions(one) {
  return [
    button(`trigger-${one.name}`, "Run now", `${path(one.name)}/trigger`, `${one.name} is queued.`, one.name),
    one.enabled
      ? button(`pause-${one.name}`, "Pause", path(one.name), `${one.name} is paused.`, one.name, { method: "PATCH", body: { enabled: false }, kind: "plain" })
      : button(`resume-${one.name}`, "Resume", path(one.name), `${one.name} goes on.`, one.name, { method: "PATCH", body: { enabled: true } }),
  ];
}

export function schedulesPart({ all = false } = {}) {
  const one = get("api/schedules", { every_s: 15 });
  const list = one.data?.schedules ?? [];
  const may = canAct();
  const column = (name) => h("th", { scope: "col" }, name);
  return part(
    "schedules",
    "Schedules",
    null,
    missing(one) ??
      (list.length
        ? h(
            "table",
            { class: "stacked" },
            h(
              "thead",
              null,
              h("tr", null, column("Schedule"), column("When"), column("Last run"), column("Next run"), may ? column(h("span", { class: "unseen" }, "Action")) : null),
            ),
            h(
              "tbody",
              null,
              (all ? list : list.slice(0, SHOWN)).map((row) =>
                h(
                  "tr",
                  { key: row.name, class: row.enabled ? "" : "off" },
                  h("td", null, link(["schedules", row.name], null, h("b", null, row.name)), row.job !== row.name ? h("small", null, row.job) : null),
                  h("td", { "data-name": "when" }, cron(row)),
                  h("td", { "data-name": "last" }, lastRun(row)),
                  h("td", { "data-name": "next" }, nextRun(row)),
                  may ? h("td", null, h("div", { class: "acts" }, actions(row))) : null,
                ),
              ),
            ),
          )
        : h("p", { class: "empty" }, "There is no schedule.")),
    !all && list.length > SHOWN ? h("p", null, link(["schedules"], null, `All ${list.length} schedules`)) : null,
  );
}

function editor(one) {
  if (!canAct()) return null;
  const zones = Intl.supportedValuesOf?.("timeZone") ?? [];
  const submit = async (event) => {
    event.preventDefault();
    const form = event.target;
    const error = form.querySelector("[role=alert]");
    const value = (id) => form.querySelector(`#${id}`).value.trim();
    let payload;
    try {
      payload = JSON.parse(value("edit-payload"));
    } catch (problem) {
      error.textContent = `The payload is no JSON: ${problem.message}`;
      return;
    }
    error.textContent = "";
    await act(`edit-${one.name}`, path(one.name), `${one.name} is changed.`, {
      method: "PATCH",
      body: { cron: value("edit-cron"), timezone: value("edit-zone"), payload },
    });
  };
  const said = h("p", { class: "soft", key: "said" }, cronWords(one.cron) ?? "");
  return h(
    "details",
    { class: "again", key: "edit" },
    h("summary", null, "Edit"),
    h(
      "form",
      { on: { submit } },
      field("edit-cron", "Cron: minute, hour, day, month, weekday", h("input", { id: "edit-cron", value: one.cron, spellcheck: "false", required: true })),
      said,
      field("edit-zone", "Time zone", [
        h("input", { id: "edit-zone", value: one.timezone, list: "zones", spellcheck: "false", required: true }),
        h("datalist", { id: "zones" }, zones.map((zone) => h("option", { value: zone }))),
      ]),
      field("edit-payload", "Payload (JSON)", h("textarea", { id: "edit-payload", rows: 4, spellcheck: "false", value: JSON.stringify(one.payload, null, 2) })),
      h("p", { role: "alert", class: "bad" }),
      h("button", { type: "submit", class: "strong" }, "Save"),
    ),
  );
}

function runs(name) {
  const one = get(`api/jobs?schedule=${encodeURIComponent(name)}&limit=20`);
  const list = one.data?.jobs ?? [];
  return part(
    "runs",
    "Last runs",
    list.length ? link(["jobs"], { schedule: name }, "All of them") : null,
    missing(one) ??
      (list.length
        ? h(
            "ul",
            { class: "list" },
            list.map((job) =>
              h(
                "li",
                { key: job.id },
                h("div", { class: "what" }, jobTitle(job), job.error_message ? h("p", { class: "said" }, job.error_message) : null),
                h("div", { class: "acts" }, tag(stateOf(job)), moment(job.started_at ?? job.run_at)),
              ),
            ),
          )
        : h("p", { class: "empty" }, "It has not run yet, or its jobs are no longer kept.")),
  );
}

export function scheduleView(name) {
  const one = get(path(name));
  if (missing(one)) return part("schedule", `Schedule ${name}`, null, missing(one));
  const row = one.data;
  return [
    part(
      "schedule",
      `Schedule ${row.name}`,
      h("div", { class: "acts" }, actions(row)),
      facts([
        ["When", cron(row)],
        ["Next run", nextRun(row)],
        ["Last run", lastRun(row)],
        ["Job", link(["jobs"], { name: row.job }, row.job)],
        ["Payload", Object.keys(row.payload ?? {}).length ? json(row.payload) : null],
        ["Written by", row.source === "code" ? "the code, at each start" : "a person: the code no longer changes it"],
        ["Changed", moment(row.updated_at)],
      ]),
      editor(row),
    ),
    runs(name),
  ];
}

// What is shown when the service is ready.

import { askToken } from "./actions.js";
import { h } from "./dom.js";
import { failedPart, runningPart } from "./job_lists.js";
import { sql } from "./migrations.js";
import { model, token } from "./model.js";
import { queuesPart } from "./queues.js";
import { schedulesPart, startsPart } from "./schedules.js";
import { sentence, words } from "./words.js";

export function warnings(start) {
  const shown = start.warnings.filter((one) => one.event !== "extension.missing" || start.phase === "ready");
  if (!shown.length) return null;
  const titles = {
    "extension.missing": (w) => `The extension ${w.extension} is missing`,
    "schedule.failing": (w) => `${w.schedule} ${w.state === "retrying" ? "fails, and is tried again" : "fails"}`,
    "backup.stale": () => "There is no recent backup",
    "backup.directory_unusable": (w) => `No backup can be written: ${w.error}`,
  };
  return h(
    "ul",
    { class: "notes", "aria-label": "Warnings", key: "warnings" },
    shown.slice(0, 8).map((one, n) => {
      const name = one.migration ?? one.files?.join?.(", ") ?? "";
      const title = titles[one.event]?.(one) ?? [
        sentence(words(one.event.split(".").at(-1))).slice(0, -1),
        name ? ": " : "",
        name,
      ];
      return h(
        "li",
        { key: n },
        h("b", null, title),
        one.decision ? h("p", null, sentence(one.decision)) : null,
        h("p", null, one.remedy ?? one.hint ?? ""),
        one.sql ? sql(one.sql) : null,
      );
    }),
    shown.length > 8 ? h("li", { key: "more" }, `${shown.length - 8} more on /health`) : null,
  );
}

const listOf = (body, name) => (Array.isArray(body) ? body : (body?.[name] ?? body?.items ?? []));

export function ready(start) {
  const { reads, actions } = start.access ?? {};
  if (reads === "refused")
    return h(
      "section",
      { class: "gate", key: "closed", "aria-label": "Jobs" },
      h("p", null, h("b", null, "Nothing but /health answers. ")),
      h("p", null, "No API_TOKEN is set, and the port is open beyond this machine."),
      h("p", null, "Set API_TOKEN (`orchestrator token` makes one). Where nobody else reaches this port, API_ACCESS=read or open will do."),
    );
  if ((reads === "token" && !token()) || model.wants_token) {
    return h(
      "section",
      { class: "gate", key: "gate", "aria-label": "Jobs" },
      h("p", null, "Queues, jobs and schedules are shown to those who have the server’s API token."),
      h("button", { type: "button", class: "strong", on: { click: askToken } }, "Enter the token"),
    );
  }
  const { queues, running: runs, failed, schedules, starts } = model.jobs;
  if (!queues)
    return model.jobs_error
      ? h("p", { class: "note", key: "jobs-error" }, `The jobs cannot be read: ${model.jobs_error}`)
      : null;
  return [
    model.jobs_error
      ? h("p", { class: "note", key: "jobs-error" }, `The jobs are not up to date: ${model.jobs_error}`)
      : null,
    actions === "refused"
      ? h(
          "p",
          { class: "note", key: "refused" },
          h("b", null, "To look at only. "),
          "No API_TOKEN is set, and API_ACCESS=read: the server refuses what changes something.",
        )
      : null,
    actions === "token" && !token()
      ? h(
          "p",
          { class: "note", key: "reading" },
          h("b", null, "To look at. "),
          "What changes something asks for the API token. ",
          h("button", { type: "button", class: "plain", on: { click: askToken } }, "Enter the token"),
        )
      : null,
    queuesPart(queues),
    runningPart(listOf(runs, "jobs")),
    failedPart(listOf(failed, "jobs")),
    schedulesPart(listOf(schedules, "schedules")),
    startsPart(listOf(starts, "starts")),
  ];
}

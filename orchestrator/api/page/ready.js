// What is shown when the service is ready: the view that the address names, or who may not look.

import { askToken } from "./actions.js";
import { addView } from "./add_job.js";
import { get } from "./data.js";
import { h } from "./dom.js";
import { failedCount, failuresPart } from "./failures.js";
import { jobsView, runningPart } from "./job_lists.js";
import { jobView } from "./job_page.js";
import { migrationView, migrationsView } from "./migration_page.js";
import { sql } from "./migrations.js";
import { model, token } from "./model.js";
import { link, part } from "./parts.js";
import { queuesPart } from "./queues.js";
import { route } from "./router.js";
import { scheduleView, schedulesPart } from "./schedules.js";
import { startView, startsPart } from "./starts.js";
import { ago, count, plural, sentence, timer, words } from "./words.js";

export function warnings(start) {
  const shown = start.warnings.filter((one) => one.event !== "extension.missing" || start.phase === "ready");
  if (!shown.length) return null;
  const titles = {
    "extension.missing": (w) => `The extension ${w.extension} is missing`,
    "schedule.failing": (w) => [
      link(["schedules", w.schedule], null, w.schedule),
      w.state === "retrying" ? " fails, and is tried again" : " fails",
    ],
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

/** The service in a line of figures, each of which opens what it tells of. */
function glance(start) {
  const { database } = start.checks;
  const backup = get("api/overview", { every_s: 30, live: false }).data;
  const workers = get("api/queues", { every_s: 5 }).data?.workers?.filter((one) => one.is_alive);
  const failed = failedCount();
  const { applied, total } = start.migrations;
  const rows = [
    ["Database", database?.server_version ? `PostgreSQL ${database.server_version}` : "connected", database?.database],
    ["Migrations", link(["migrations"], null, `${count(applied)} of ${count(total)}`), applied === total ? "all applied" : "not all applied"],
    [
      "Last backup",
      backup?.backup_at ? timer(ago(backup.backup_at)) : "none",
      backup?.backup_schedule ? link(["schedules", backup.backup_schedule], null, "its schedule") : "not scheduled",
    ],
    ["Replicas", workers ? plural(workers.length, "worker") : "…", workers && [...new Set(workers.map((one) => one.host))].slice(0, 3).join(", ")],
    ["Failed jobs", failed === null ? "…" : link(["jobs"], { state: "failed" }, count(failed), { class: failed ? "bad" : null }), failed ? link(["failures"], null, "grouped") : "none"],
  ];
  return h(
    "dl",
    { class: "glance", key: "glance", "aria-label": "At a glance" },
    rows.map(([name, value, more]) => h("div", null, h("dt", null, name), h("dd", null, value), more ? h("dd", { class: "more" }, more) : null)),
  );
}

/** Why nothing behind the token can be shown; null where it can. */
export function gate(start) {
  const { reads } = start.access ?? {};
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
  return null;
}

function mayOnlyLook(start) {
  const { actions } = start.access ?? {};
  if (actions === "refused")
    return h(
      "p",
      { class: "note", key: "refused" },
      h("b", null, "To look at only. "),
      "No API_TOKEN is set, and API_ACCESS=read: the server refuses what changes something.",
    );
  if (actions === "token" && !token())
    return h(
      "p",
      { class: "note", key: "reading" },
      h("b", null, "To look at. "),
      "What changes something asks for the API token. ",
      h("button", { type: "button", class: "plain", on: { click: askToken } }, "Enter the token"),
    );
  return null;
}

const VIEWS = {
  jobs: ([, id]) => (id ? jobView(id) : jobsView()),
  failures: () => failuresPart({ all: true }),
  schedules: ([, name]) => (name ? scheduleView(name) : schedulesPart({ all: true })),
  migrations: ([, source, name]) => (name ? migrationView(source, name) : migrationsView()),
  starts: ([, id]) => (id ? startView(id) : startsPart({ all: true, cursor: route().query.get("cursor") })),
  add: () => addView(),
};

const NAMES = { overview: "Overview", jobs: "Jobs", failures: "Failures", schedules: "Schedules", migrations: "Migrations", starts: "Starts", add: "Add a job" };

/** The name of the view, for the title; "" for the overview. */
export function viewName() {
  const { view, parts } = route();
  if (view === "overview") return "";
  const of = parts.length > 1 ? parts.at(-1) : "";
  return { jobs: of && `Job #${of}`, schedules: of, starts: of && `Start #${of}`, migrations: of }[view] || NAMES[view] || "";
}

/** The way between the views. */
export function nav() {
  const { view } = route();
  const failed = failedCount();
  return h(
    "nav",
    { class: "views", "aria-label": "Views", key: "nav" },
    ["overview", "jobs", "failures", "schedules", "migrations", "starts"].map((one) =>
      link(one === "overview" ? [] : [one], null, [NAMES[one], one === "failures" && failed ? h("span", { class: "badge" }, count(failed)) : null], {
        "aria-current": view === one ? "page" : null,
      }),
    ),
  );
}

export function ready(start) {
  const closed = gate(start);
  if (closed) return closed;
  const { view, parts } = route();
  const shown = VIEWS[view]?.(parts);
  if (shown) return [mayOnlyLook(start), shown];
  if (view !== "overview") return part("nothing", "There is no such page", null, h("p", null, link([], null, "Overview")));
  return [mayOnlyLook(start), glance(start), failuresPart(), runningPart(), queuesPart(), schedulesPart(), startsPart()];
}

// The steps of a start, with what each of them waits for.

import { h } from "./dom.js";
import { current, listing, sky, sql } from "./migrations.js";
import { PHASES, ms } from "./model.js";
import { CAUSES, address, age, count, since, span, timer, until, words } from "./words.js";

const STEPS = {
  connecting: "Database",
  locking: "Lock",
  extensions: "Extensions",
  migrating: "Migrations",
  launching: "Job server",
};

export function chain(start) {
  const reached = new Map();
  for (const entry of start.history) {
    const known = reached.get(entry.phase) ?? { total_s: 0, entered_at: entry.entered_at };
    known.total_s += entry.duration_s ?? 0;
    known.now = entry.duration_s === null ? entry.entered_at : null;
    reached.set(entry.phase, known);
  }
  const isFailed = start.phase === "failed";
  const last = start.history.filter((entry) => PHASES.includes(entry.phase)).at(-1)?.phase;
  // A start that was sent back (a connection lost under way) has its later steps before it again.
  const at = ["ready", "stopping", "stopped"].includes(start.phase)
    ? PHASES.length
    : last === undefined
      ? -1
      : PHASES.indexOf(last);
  return h(
    "ol",
    { class: "chain" },
    PHASES.map((phase, index) => {
      const been = reached.get(phase);
      const state = index < at || (isFailed && index < at) ? "done" : index > at ? "next" : isFailed ? "failed" : "now";
      const warned = phase === "extensions" && state === "done" && start.checks.extensions?.status === "warning";
      const time =
        !been || state === "next" ? "" : been.now && state === "now" ? timer(since(been.now)) : span(been.total_s);
      const spoken = { done: "done", now: "running", failed: "failed", next: "to come" }[state];
      return h(
        "li",
        { key: phase, class: `${state}${warned ? " warned" : ""}`, "aria-current": state === "now" ? "step" : null },
        h("span", { class: "node", "aria-hidden": "true" }),
        h("h2", null, STEPS[phase], h("span", { class: "unseen" }, ` (${spoken})`)),
        h("span", { class: "clock" }, time),
        state === "next" ? null : h("div", { class: "detail" }, DETAILS[phase](start, state)),
      );
    }),
  );
}

const DETAILS = {
  connecting(start, state) {
    const check = start.checks.database;
    if (!check) return null;
    if (check.status === "failed" && state !== "done") {
      const where = check.hosts?.join(", ") ?? check.server;
      return [
        h(
          "p",
          null,
          h("b", null, CAUSES[check.cause] ?? words(check.cause)),
          where ? ` at ${where}` : "",
          check.sqlstate ? ` (SQLSTATE ${check.sqlstate})` : "",
        ),
        check.hint && h("p", { class: "hint" }, check.hint),
        check.next_try_at &&
          h(
            "p",
            null,
            "Next try ",
            timer(until(check.next_try_at)),
            ["refused", "no_socket", "name_not_resolved", "unreachable"].includes(check.cause)
              ? ", or as soon as something listens"
              : "",
          ),
      ];
    }
    if (check.server_version) {
      return h(
        "p",
        null,
        h("b", null, `PostgreSQL ${check.server_version}`),
        `, database ${check.database} as ${check.user}${check.standby ? ", a standby" : ""}`,
      );
    }
    return null;
  },

  locking(start, state) {
    const check = start.checks.lock;
    if (!check || state === "done")
      return state === "done" ? h("p", null, "This process is the only one that migrates.") : null;
    const holder = check.holder;
    if (!holder) return h("p", null, "Another session holds the lock; who, this user may not see.");
    const aged = check.checked_at;
    return [
      h("p", null, "Held by ", h("b", null, holder.application_name || "a session without a name"), "."),
      h(
        "dl",
        { class: "facts" },
        [
          [
            "Process",
            `pid ${holder.pid}${holder.client_address ? ` from ${address(holder.client_address)}` : ", by the local socket"}`,
          ],
          ["Connected", timer((t) => `for ${age(holder.session_age_s + (t - ms(aged)) / 1000)}`)],
          holder.state === "active" &&
            holder.statement_age_s !== null && [
              "Its statement runs",
              timer((t) => `for ${age(holder.statement_age_s + (t - ms(aged)) / 1000)}`),
            ],
          ["State", holder.state],
        ]
          .filter(Boolean)
          .map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
      ),
      h("p", null, "This start goes on as soon as the lock is free."),
    ];
  },

  extensions(start) {
    const check = start.checks.extensions;
    if (!check) return null;
    const installed = Object.entries(check.installed ?? {});
    const missing = check.missing ?? [];
    if (!installed.length && !missing.length) return h("p", null, "None asked for.");
    const reasons = {
      not_permitted: "this user may not create it",
      not_available: "the server has no files of it",
      standby: "the server is a standby",
      failed: "the server refused",
    };
    return h(
      "ul",
      { class: "lines" },
      installed.length
        ? h(
            "li",
            { key: "installed" },
            h(
              "span",
              null,
              installed.map(([name, version], n) => [n ? ", " : "", h("b", null, name), ` ${version}`]),
            ),
          )
        : null,
      missing.map((one) =>
        h(
          "li",
          { key: `m-${one.extension}` },
          h("b", null, one.extension),
          h("span", { class: "warn" }, `missing: ${reasons[one.reason] ?? words(one.reason)}`),
          one.reason === "standby" || !one.sql ? null : h("span", { class: "soft" }, "The database’s owner runs, once:"),
          one.sql ? sql(one.sql) : null,
        ),
      ),
    );
  },

  migrating(start, state) {
    const { migrations, items } = start;
    if (!migrations.total) return null;
    const done =
      state === "now" // the headline says it
        ? null
        : h(
            "p",
            null,
            h("b", null, `${count(migrations.applied)} of ${count(migrations.total)}`),
            " applied",
            items?.timed ? `, ${count(items.timed)} by this start` : "",
          );
    return [
      done,
      items?.rows.length ? sky(items) : null,
      state === "now" && migrations.current ? current(start) : null,
      items?.rows.length ? listing(items) : null,
    ];
  },

  launching() {
    return null;
  },
};

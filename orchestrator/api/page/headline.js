// What state the service is in: one word for colour and shape, the headline, and the lines below it.

import { h } from "./dom.js";
import { PHASES, model } from "./model.js";
import { CAUSES, age, ago, count, plural, sentence, since, span, timer, words } from "./words.js";

// What database/connect_errors.py calls the ways in which no connection comes about.
const LOSSES = new Set([
  ...["refused", "name_not_resolved", "no_socket", "timeout", "unreachable", "starting_up", "stopping", "closed"],
  ...["too_many_connections", "out_of_resources", "lost", "connection_lost"],
]);

/** One word for colour and shape, the headline, and the lines below it. */
export function describe() {
  const start = model.start;
  if (!start) {
    if (model.link === "away" && model.misses > 1)
      return { state: "warn", shape: "away", title: "No answer yet", sub: [retryLine()] };
    return { state: "idle", shape: "wait", title: "Looking…", sub: [] };
  }
  const { phase } = start;
  if (model.ended || model.link === "away") return describeAway(start);
  if (phase === "failed")
    return { state: "bad", shape: "failed", title: "The start failed", sub: [failedLine(model.failure)] };
  if (phase === "stopping" || phase === "stopped")
    return { state: "idle", shape: "away", title: "Stopping", sub: ["Requests in flight are finished first."] };
  if (phase === "ready") {
    const entered = start.history.at(-1).entered_at;
    return {
      state: "ok",
      shape: "ready",
      title: "Ready",
      sub: [h("span", null, "for ", timer(since(entered, age)), readyAfter(start))],
    };
  }
  if (phase === "connecting" && start.status === "unavailable") {
    const { cause, hint } = start.checks.database ?? {};
    return {
      state: "bad",
      shape: "lost",
      // Only a connection can be lost: a database that is another one, or that cannot be written to, is there.
      title: !cause || LOSSES.has(cause) ? "The database is lost" : (CAUSES[cause] ?? sentence(words(cause)).slice(0, -1)),
      sub: [
        cause && !LOSSES.has(cause) ? hint : null,
        h(
          "span",
          null,
          "for ",
          timer(since(start.history.at(-1).entered_at)),
          ". The job server waits for it and goes on by itself.",
        ),
      ],
    };
  }
  return { ...describeStart(start), state: waits(start) ? "warn" : "go", shape: "start", part: progress(start) };
}

/** Something outside has to happen before this start goes on. */
function waits(start) {
  return (
    (start.phase === "connecting" && start.checks.database?.status === "failed") ||
    (start.phase === "locking" && start.checks.lock)
  );
}

function readyAfter(start) {
  const first = start.history.findIndex((entry) => entry.phase === "ready");
  if (first < 0) return "";
  const took = start.history.slice(0, first).reduce((sum, entry) => sum + (entry.duration_s ?? 0), 0);
  const lost = start.history.filter((entry) => entry.phase === "connecting").length - 1;
  return `, after a start of ${span(took)}${lost > 0 && start.history[0].phase === "starting" ? `; the database was lost ${lost === 1 ? "once" : `${lost} times`} on the way` : ""}`;
}

function describeStart(start) {
  const entered = start.history.at(-1).entered_at;
  const took = timer(since(entered));
  switch (start.phase) {
    case "starting":
      return { title: "Starting", sub: [h("span", null, "Reading settings and migrations, ", took)] };
    case "connecting": {
      const check = start.checks.database;
      if (check?.status !== "failed") return { title: "Connecting to the database", sub: [took] };
      return {
        title: "Waiting for the database",
        sub: [h("span", null, "for ", took, check.attempt ? `, ${plural(check.attempt, "try", "tries")} so far` : "")],
      };
    }
    case "locking":
      return start.checks.lock
        ? {
            title: "Waiting for another migrator",
            sub: [h("span", null, "It holds the lock of this database. Waiting for ", took)],
          }
        : { title: "Taking the lock", sub: [took] };
    case "extensions":
      return { title: "Looking after extensions", sub: [took] };
    case "migrating": {
      const { applied, total } = start.migrations;
      return {
        title: "Applying migrations",
        sub: [
          h(
            "span",
            null,
            total ? `${count(applied)} of ${count(total)} applied, ` : "Reading files and ledger, ",
            "for ",
            took,
            leftover(start),
          ),
        ],
      };
    }
    default:
      return { title: "Launching the job server", sub: [took] };
  }
}

/** What the rest may take: the mean of what this process applied, once there is something to go by. */
function leftover(start) {
  const { items, migrations } = start;
  const left = migrations.total - migrations.applied;
  if (!items || items.timed < 5 || left < 5) return "";
  return `; about ${age(Math.max(1, (items.spent_s / items.timed) * left))} more at this pace`;
}

function describeAway(start) {
  if (model.failure && (start.failure || start.phase === "failed")) {
    return {
      state: "bad",
      shape: "failed",
      title: "The start failed",
      sub: [failedLine(model.failure), processLine()],
    };
  }
  const ended = model.ended !== null;
  const stopped = ended && ["stopping", "stopped"].includes(start.phase);
  return {
    state: stopped ? "idle" : "warn",
    shape: "away",
    title: stopped ? "Stopped" : ended ? "The process ended" : "Cut off",
    sub: [
      stopped
        ? "It was asked to stop, and did."
        : `No answer since ${new Date(model.heard_at).toLocaleTimeString("en-GB")}. What is shown below is from then.`,
      retryLine(),
    ],
  };
}

function failedLine(failure) {
  const facts = failure?.facts ?? {};
  const during = failure?.history?.filter((entry) => entry.phase !== "failed").at(-1)?.phase;
  const where = facts.migration ? h("b", null, facts.migration) : during ? `while ${during}` : "";
  return h(
    "span",
    null,
    where,
    where ? ", " : "",
    failure ? timer(() => ago(failure.at)(Date.now() + model.skew_ms)) : "",
  );
}

function processLine() {
  const code = model.failure?.facts.exit_code;
  return h("span", null, `The process has ended${code === undefined ? "" : ` with exit code ${code}`}. `, retryLine());
}

function retryLine() {
  return timer(() => {
    const s = (model.link_retry_at - Date.now()) / 1000;
    return s > 1.4 ? `Looking for it again in ${Math.ceil(s)} s.` : "Looking for it again every second.";
  });
}

/** 0…1 of the way to READY, for the ring. */
function progress(start) {
  const at = PHASES.indexOf(start.phase);
  if (at < 0) return 0.02;
  const { applied, total } = start.migrations;
  const inner = start.phase === "migrating" && total ? applied / total : 0.1;
  const weights = [0.08, 0.04, 0.04, 0.76, 0.08];
  return weights.slice(0, at).reduce((a, b) => a + b, 0.02) + weights[at] * inner;
}

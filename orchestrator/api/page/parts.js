// What the views share: a part with its heading, names of states, moments, JSON that folds, lines for what is missing.

import { h } from "./dom.js";
import { to } from "./router.js";
import { ago, clock, timer } from "./words.js";

export function part(key, title, aside, ...body) {
  return h(
    "section",
    { class: "part", key, "aria-labelledby": `h-${key}` },
    h("div", { class: "head" }, h("h2", { id: `h-${key}` }, title), aside ? h("div", { class: "aside" }, aside) : null),
    body,
  );
}

export const link = (parts, query, text, props) => h("a", { href: to(parts, query), ...props }, text);

const KINDS = { failed: "bad", succeeded: "ok", running: "go", retrying: "warn", paused: "warn" };

/** A job's state as a word; one that failed and waits for its next attempt is "retrying". */
export const stateOf = (job) =>
  job.attempt > 0 && ["scheduled", "queued"].includes(job.state) && job.error_message ? "retrying" : job.state;

export const tag = (word) => h("span", { class: `tag ${KINDS[word] ?? ""}` }, word);

/** A moment: how long ago, and when by this browser's clock; the title has it in UTC. */
export const moment = (iso) =>
  iso ? h("span", { title: iso }, timer(ago(iso)), h("small", { class: "when" }, clock(iso))) : h("span", { class: "soft" }, "never");

/** What is not there yet, or cannot be read; null where there are data. */
export function missing(one, nothing = null) {
  if (one.error) return h("p", { class: "note", role: "alert" }, one.status === 404 ? "There is no such thing, or no longer." : one.error);
  if (one.data === null) return h("p", { class: "empty" }, "Reading…");
  return nothing;
}

/** JSON, folded below the first level; what is long is folded as a whole. */
export function json(value, depth = 0) {
  if (value === null || typeof value !== "object") return h("code", { class: "value" }, JSON.stringify(value));
  const entries = Object.entries(value);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  if (!entries.length) return h("code", { class: "value" }, open + close);
  const inside = h(
    "ul",
    { class: "json", role: "list" },
    entries.slice(0, 500).map(([name, one]) =>
      h("li", null, Array.isArray(value) ? null : h("span", { class: "name" }, `${name}: `), json(one, depth + 1)),
    ),
    entries.length > 500 ? h("li", { class: "soft" }, `${entries.length - 500} more`) : null,
  );
  if (depth === 0 && entries.length <= 20) return inside;
  return h("details", null, h("summary", null, `${open} ${entries.length} ${close}`), inside);
}

/** Names and values, what is empty left out. */
export const facts = (rows) =>
  h(
    "dl",
    { class: "facts" },
    rows
      .filter((row) => row && row[1] !== null && row[1] !== undefined && row[1] !== "")
      .map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
  );

/** A label with its field. */
export const field = (id, label, control) => h("div", { class: "field", key: `f-${id}` }, h("label", { for: id }, label), control);

// What fails now, grouped by name and error: what was given up, and what is tried again.

import { button, canAct } from "./actions.js";
import { get } from "./data.js";
import { h } from "./dom.js";
import { link, missing, part } from "./parts.js";
import { ago, count, plural, timer } from "./words.js";

const SHOWN = 6;

// It reads thousands of errors: by the clock, and not at every event of a busy queue.
const failures = () => get("api/jobs/failures", { every_s: 5, live: false });

/** How many jobs are given up, of all groups; null while that is not known. */
export function failedCount() {
  const { data } = failures();
  return data && data.groups.reduce((sum, group) => sum + group.failed, 0);
}

function group(one) {
  const about = `${one.name}, ${one.error_type ?? "failure"}`;
  const times = one.failed + one.retrying;
  const which = { failure: one.key };
  const act = (action, label, done, sure) =>
    button(`${action}-${one.key}`, label, "api/jobs/bulk", (answer) => `${plural(answer.changed, "job")} ${done}.`, about, {
      body: { action, filter: { ...which, state: "failed" }, expected: one.failed },
      sure,
      kind: action === "discard" ? "plain" : null,
    });
  return h(
    "li",
    { key: one.key },
    h(
      "div",
      { class: "what" },
      h(
        "div",
        { class: "title" },
        link(["jobs"], which, [h("b", null, one.name), " ", times > 1 ? h("span", { class: "id" }, `${count(times)} times`) : null]),
        one.retrying
          ? link(["jobs"], { ...which, retrying: "true" }, `${count(one.retrying)} tried again`, { class: "tag warn" })
          : null,
      ),
      h(
        "p",
        { class: "said" },
        h("span", { class: one.failed ? "bad" : "warn" }, one.error_type ? `${one.error_type}: ` : ""),
        one.message ?? "without a message",
      ),
    ),
    h(
      "div",
      { class: "acts" },
      timer(ago(one.last_at)),
      link(["jobs", String(one.job_id)], null, "Newest", { "aria-label": `Newest failure of ${about}` }),
      one.failed ? act("retry", one.failed > 1 ? "Retry all" : "Retry", "queued again", one.failed > 1 ? `Run ${plural(one.failed, "job")} of ${one.name} again?` : null) : null,
      one.failed ? act("discard", "Discard", "removed", `Remove ${plural(one.failed, "failed job")} of ${one.name} for good?`) : null,
    ),
  );
}

/** The part with the groups, all of them or the newest; an empty one takes a line. */
export function failuresPart({ all = false } = {}) {
  const one = failures();
  const groups = one.data?.groups ?? [];
  const failed = groups.reduce((sum, g) => sum + g.failed, 0);
  const retrying = groups.reduce((sum, g) => sum + g.retrying, 0);
  const aside = groups.length
    ? [
        failed ? link(["jobs"], { state: "failed" }, `${count(failed)} given up`) : null,
        failed && retrying ? ", " : null,
        retrying ? link(["jobs"], { retrying: "true" }, `${count(retrying)} tried again`) : null,
      ]
    : null;
  return part(
    "failures",
    "Failures",
    aside,
    missing(one) ??
      (groups.length
        ? h("ul", { class: `list${canAct() ? "" : " quiet"}` }, (all ? groups : groups.slice(0, SHOWN)).map(group))
        : h("p", { class: "empty" }, "Nothing fails.")),
    !all && groups.length > SHOWN ? h("p", null, link(["failures"], null, `All ${plural(groups.length, "group")}`)) : null,
  );
}

// Why a start failed: the place in the file, and what to do.

import { h } from "./dom.js";
import { plural, words } from "./words.js";

export function failurePanel({ facts, history }) {
  const message = facts.reason ?? facts.error;
  const where = [
    facts.file && h("code", null, facts.file),
    facts.line && h("span", null, `line ${facts.line}${facts.column ? `, column ${facts.column}` : ""}`),
    facts.statement &&
      h("span", null, `statement ${facts.statement}${facts.statement_kind ? `, ${facts.statement_kind}` : ""}`),
  ];
  const rows = [
    ["SQLSTATE", facts.sqlstate],
    ["Detail", facts.detail],
    ["Hint", facts.hint],
    ["Context", facts.context],
    ["Table", facts.table],
    ["Constraint", facts.constraint],
    ["Hosts", facts.hosts?.join?.(", ")],
    ["Cause", facts.cause && words(facts.cause)],
    [
      "Done of the file",
      facts.statements_done !== undefined && `${plural(facts.statements_done, "statement")}, which stay`,
    ],
    ["Applied before", facts.applied_before?.length ? plural(facts.applied_before.length, "migration") : null],
    ["Refused", facts.refused?.map?.((one) => `${one.migration} (${words(one.kind)})`).join(", ")],
    ["Holder", facts.holder && `pid ${facts.holder.pid}, ${facts.holder.application_name}`],
    ["Phase", history?.filter((entry) => entry.phase !== "failed").at(-1)?.phase],
  ].filter(([, value]) => value !== undefined && value !== null && value !== false && value !== "");
  return [
    h("div", null, h("h2", null, message), where.some(Boolean) ? h("p", { class: "where" }, where) : null),
    facts.excerpt ? excerpt(facts) : null,
    facts.remedy
      ? h(
          "div",
          { class: "remedy" },
          h("h3", null, "What to do"),
          h("p", null, facts.remedy),
          facts.restart_helps === false ? h("p", null, "Starting it again as it is will end the same way.") : null,
        )
      : null,
    rows.length
      ? h(
          "div",
          null,
          h(
            "dl",
            { class: "facts" },
            rows.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
          ),
        )
      : null,
  ];
}

/** The line of the file, and the word at the caret marked. */
function excerpt(facts) {
  const lines = String(facts.excerpt).split("\n");
  const caret = lines.length > 1 && /^\s*\^$/.test(lines.at(-1)) ? lines.pop().length - 1 : -1;
  const text = lines.at(-1);
  // At the beginning of the statement the server named no place in it: then the statement is meant.
  const isAll = caret >= 0 && text.slice(0, caret).trim() === "";
  const word = isAll
    ? text.slice(caret)
    : caret >= 0
      ? (/^("[^"]*"|'[^']*'|[\w$]+|.)/.exec(text.slice(caret))?.[0] ?? " ")
      : "";
  return h(
    "div",
    { class: "excerpt", tabindex: 0, role: "region", "aria-label": "The statement in the file" },
    h("code", { class: "line", "aria-hidden": "true" }, facts.line ?? ""),
    h(
      "code",
      null,
      caret < 0
        ? lines.join("\n")
        : [text.slice(0, caret), h("mark", { class: isAll ? "all" : null }, word), text.slice(caret + word.length)],
    ),
  );
}

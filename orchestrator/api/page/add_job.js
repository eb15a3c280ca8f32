// Add a job by a form that is made from the schema of the handler's payload.

import { act, canAct } from "./actions.js";
import { get } from "./data.js";
import { h } from "./dom.js";
import { field, missing, part } from "./parts.js";
import { go, route } from "./router.js";

/** The schema that a $ref or an optional value stands for. */
function resolved(schema, whole) {
  if (schema.$ref) return resolved(whole.$defs?.[schema.$ref.split("/").at(-1)] ?? {}, whole);
  const choices = schema.anyOf?.filter((one) => one.type !== "null");
  return choices?.length === 1 ? { ...resolved(choices[0], whole), default: schema.default } : schema;
}

/** How a field is entered: its control, and how its text becomes a value (undefined: left out). */
function entry(name, schema, required) {
  const id = `in-${name}`;
  const preset = schema.default ?? null;
  const common = { id, "aria-describedby": schema.description ? `${id}-about` : null, required };
  const plain = (type, read) => ({
    control: h("input", { ...common, type, step: type === "number" ? "any" : null, value: preset === null ? "" : String(preset) }),
    read,
  });
  if (schema.enum) {
    return {
      control: h(
        "select",
        { ...common, value: preset === null ? "" : JSON.stringify(preset) },
        required ? null : h("option", { value: "" }, ""),
        schema.enum.map((one) => h("option", { value: JSON.stringify(one) }, String(one))),
      ),
      read: (text) => (text === "" ? undefined : JSON.parse(text)),
    };
  }
  switch (schema.type) {
    case "string":
      return plain("text", (text) => (text === "" && !required ? undefined : text));
    case "integer":
    case "number":
      return plain("number", (text) => (text === "" ? undefined : Number(text)));
    case "boolean":
      return {
        control: h(
          "select",
          { ...common, value: preset === null ? "" : String(preset) },
          required ? null : h("option", { value: "" }, ""),
          h("option", { value: "true" }, "yes"),
          h("option", { value: "false" }, "no"),
        ),
        read: (text) => (text === "" ? undefined : text === "true"),
      };
    default:
      return {
        control: h("textarea", { ...common, rows: 3, spellcheck: "false", value: preset === null ? "" : JSON.stringify(preset) }),
        read: (text) => (text.trim() === "" ? undefined : JSON.parse(text)),
        isJson: true,
      };
  }
}

/** The fields of an object's schema, null where it has none: then the payload is entered whole. */
function fields(whole) {
  const schema = resolved(whole, whole);
  const names = Object.entries(schema.properties ?? {});
  if (schema.type !== "object" || !names.length) return null;
  return names.map(([name, given]) => {
    const one = resolved(given, whole);
    return { name, schema: one, ...entry(name, one, Boolean(schema.required?.includes(name))) };
  });
}

/** Read the form. Throws SyntaxError with the field's name where JSON is none. */
function payloadOf(form, shown) {
  const text = (id) => form.querySelector(`[id="${CSS.escape(id)}"]`).value;
  if (!shown) return JSON.parse(text("in-payload") || "{}");
  const payload = {};
  for (const one of shown) {
    try {
      const value = one.read(text(`in-${one.name}`));
      if (value !== undefined) payload[one.name] = value;
    } catch (problem) {
      throw new SyntaxError(`${one.name} is no JSON: ${problem.message}`);
    }
  }
  return payload;
}

function form(handler) {
  const shown = fields(handler.payload_schema);
  const submit = async (event) => {
    event.preventDefault();
    const made = event.target;
    const error = made.querySelector("[role=alert]");
    error.textContent = "";
    const body = { name: handler.name };
    try {
      body.payload = payloadOf(made, shown);
    } catch (problem) {
      if (!(problem instanceof SyntaxError)) throw problem;
      error.textContent = problem.message;
      return;
    }
    const delay = made.querySelector("#in--delay").value;
    const priority = made.querySelector("#in--priority").value;
    if (delay) body.delay_s = Number(delay) * 60;
    if (priority) body.priority = Number(priority);
    const answer = await act("add", "api/jobs", (one) => `Job #${one.id} is ${one.state}.`, { body });
    if (answer) go(["jobs", String(answer.id)]);
  };
  return h(
    "form",
    { class: "add", key: `add-${handler.name}`, on: { submit } },
    handler.doc ? h("p", { class: "soft" }, handler.doc) : null,
    shown
      ? shown.map((one) => [
          field(`in-${one.name}`, `${one.name}${one.isJson ? " (JSON)" : ""}`, one.control),
          one.schema.description ? h("p", { class: "soft", id: `in-${one.name}-about` }, one.schema.description) : null,
        ])
      : field("in-payload", "Payload (JSON)", h("textarea", { id: "in-payload", rows: 6, spellcheck: "false", value: "{}" })),
    h(
      "details",
      { key: "more" },
      h("summary", null, "When, and how urgent"),
      field("in--delay", "Minutes from now", h("input", { id: "in--delay", type: "number", min: 0, step: "any" })),
      field("in--priority", "Priority (higher runs first)", h("input", { id: "in--priority", type: "number", step: 1 })),
    ),
    h("p", { role: "alert", class: "bad" }),
    h("button", { type: "submit", class: "strong" }, "Add the job"),
  );
}

export function addView() {
  const chosen = route().query.get("name");
  const one = get("api/handlers", { every_s: 300, live: false });
  if (missing(one)) return part("add", "Add a job", null, missing(one));
  if (!canAct()) return part("add", "Add a job", null, h("p", { class: "note" }, "Jobs are added by those who have the API token."));
  const list = one.data.handlers;
  const handler = list.find((found) => found.name === chosen);
  return part(
    "add",
    "Add a job",
    null,
    field(
      "in--name",
      "Job",
      h(
        "select",
        { id: "in--name", value: handler?.name ?? "", on: { change: (event) => go(["add"], { name: event.target.value }) } },
        h("option", { value: "" }, "choose one"),
        list.map((found) => h("option", { value: found.name }, found.name)),
      ),
    ),
    handler ? form(handler) : null,
  );
}

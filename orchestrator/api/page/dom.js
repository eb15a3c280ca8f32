// Drawing: descriptions of nodes (`h`), and the DOM made to match them (`patch`). Text from the server never becomes markup.

import { now } from "./model.js";

export const SVG = "http://www.w3.org/2000/svg";

const SVG_TAGS = new Set(["svg", "g", "path", "circle", "rect", "line", "polyline", "text", "title"]);

// C0 but tab and line feed, DEL, C1, and what turns the direction of text or breaks lines: as orchestrator/printable.py.
const STEERING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** Text from outside with each character that steers written as \uXXXX: a name cannot turn the words beside it. */
export function printable(text) {
  return text.replace(STEERING, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** A node to be: `on` are listeners, `vars` CSS variables, `timer` text that runs, `key` what it is among siblings. */
export function h(tag, props, ...children) {
  const kept = children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== "");
  return { tag, props: props ?? {}, children: kept.map((c) => (typeof c === "object" ? c : printable(String(c)))) };
}

/** Make the children of `parent` what `wanted` says, keeping the nodes that stay: focus, scroll and open details too. */
export function patch(parent, wanted) {
  const keys = new Set(wanted.map((v) => v.props?.key).filter((k) => k !== undefined));
  const keyed = new Map();
  for (const node of [...parent.childNodes]) {
    if (node.orchKey === undefined) continue;
    if (keys.has(node.orchKey)) keyed.set(node.orchKey, node);
    else node.remove();
  }
  let at = parent.firstChild;
  for (const v of wanted) {
    let node = null;
    if (typeof v === "string") {
      if (at?.nodeType === Node.TEXT_NODE) {
        if (at.data !== v) at.data = v;
        node = at;
      } else node = document.createTextNode(v);
    } else {
      const { key } = v.props;
      if (key !== undefined) node = keyed.get(key) ?? null;
      else if (at?.nodeType === Node.ELEMENT_NODE && at.orchKey === undefined) node = at;
      if (node === null || node.orchTag !== v.tag) {
        node = SVG_TAGS.has(v.tag) ? document.createElementNS(SVG, v.tag) : document.createElement(v.tag);
        node.orchTag = v.tag;
        node.orchKey = key;
        if (v.props.open) node.setAttribute("open", ""); // from then on it is the person's
      }
      dress(node, v);
    }
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function dress(node, { props, children }) {
  const attributes = {};
  for (const [name, value] of Object.entries(props)) {
    if (["key", "on", "vars", "timer", "open", "value"].includes(name) || value === null || value === undefined) continue;
    if (value === false) continue;
    // What is edited or sent keeps its characters.
    attributes[name] = value === true ? "" : ["title", "aria-label"].includes(name) ? printable(value) : String(value);
  }
  for (const name of node.orchAttributes ?? []) if (!(name in attributes)) node.removeAttribute(name);
  for (const [name, value] of Object.entries(attributes)) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  node.orchAttributes = Object.keys(attributes);
  for (const [name, value] of Object.entries(props.vars ?? {})) node.style.setProperty(name, value);
  for (const [name, listener] of Object.entries(props.on ?? {})) {
    if (!node.orchOn?.[name]) node.addEventListener(name, (event) => node.orchOn[name](event));
    node.orchOn = { ...node.orchOn, [name]: listener };
  }
  if (props.timer) {
    node.orchTimer = props.timer;
    node.setAttribute("data-timer", "");
    run(node);
  } else {
    if (node.orchTimer) {
      node.orchTimer = null;
      node.removeAttribute("data-timer");
    }
    patch(node, children);
  }
  // A field's value is what the view says until a person changes it, and again when the view says another.
  if (props.value !== undefined && node.orchValue !== props.value) {
    node.orchValue = props.value;
    node.value = props.value;
  }
}

function run(node) {
  const text = printable(node.orchTimer(now()));
  if (node.textContent !== text) node.textContent = text;
}

setInterval(() => {
  for (const node of document.querySelectorAll("[data-timer]")) run(node);
}, 100);

export function say(text) {
  const node = document.getElementById("said");
  if (node.textContent !== text) node.textContent = text;
}

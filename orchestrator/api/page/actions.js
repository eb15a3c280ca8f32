// What a person does: buttons that change something, the question before it, the token, copying.

import { forget, outdate } from "./data.js";
import { h, say } from "./dom.js";
import { jobs, refuseToken } from "./jobs_feed.js";
import { changed, forgetKeptToken, keepToken, model, token } from "./model.js";
import { followAgain } from "./start_feed.js";
import { ask } from "./transport.js";

export function canAct() {
  const actions = model.start?.access?.actions;
  return actions === "open" || (actions === "token" && Boolean(token()));
}

/** Ask the server to change something; `done` is what is said then, or makes it of the answer. Null where it refused. */
export async function act(key, path, done, { method = "POST", body } = {}) {
  if (model.busy.has(key)) return null;
  model.busy.add(key);
  changed();
  try {
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    const answer = await ask(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    toast(typeof done === "function" ? done(answer) : done);
    return answer ?? {};
  } catch (error) {
    if (error.status === 401) {
      refuseToken();
      toast("The server refused the token.");
    } else toast(`Not done: ${error.message}`);
    return null;
  } finally {
    model.busy.delete(key);
    outdate(true);
    jobs.soon(50);
    changed();
  }
}

/** A button that changes something, where that is allowed. `sure` is asked first; `after` gets the answer. */
export function button(key, label, path, done, about, { sure, after, kind, ...options } = {}) {
  if (!canAct()) return null;
  const click = async () => {
    if (sure && !(await confirmed(sure, label))) return;
    const answer = await act(key, path, done, options);
    if (answer && after) after(answer);
  };
  return h(
    "button",
    { type: "button", key, class: kind, disabled: model.busy.has(key), "aria-label": `${label} ${about}`, on: { click } },
    label,
  );
}

const question = document.getElementById("sure");

/** Whether the person says yes. */
function confirmed(text, label) {
  document.getElementById("sure-text").textContent = text;
  document.getElementById("sure-yes").textContent = label;
  question.returnValue = "";
  question.showModal();
  return new Promise((resolve) => {
    question.addEventListener("close", () => resolve(question.returnValue === "yes"), { once: true });
  });
}

document.getElementById("sure-no").addEventListener("click", () => question.close());

export function toast(text) {
  model.toast = text;
  say(text);
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => {
    model.toast = null;
    changed();
  }, 4000);
  changed();
}

export function copyButton(text, what = "the SQL") {
  if (!navigator.clipboard) return null;
  const copy = (event) => {
    navigator.clipboard.writeText(text).then(
      () => toast("Copied."),
      () => toast("The browser does not allow copying."),
    );
    event.preventDefault();
  };
  return h("button", { type: "button", class: "plain", "aria-label": `Copy ${what}`, on: { click: copy } }, "Copy");
}

/** A link to what asks for the token: a browser would follow it without one. */
export function guarded(path, name) {
  if (!model.start?.access?.token) return h("a", { href: path }, name);
  if (!token()) return null;
  const open = async () => {
    const answer = await fetch(path, { headers: { Authorization: `Bearer ${token()}` } });
    if (!answer.ok) return toast(`The server answers ${answer.status}.`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = path;
    link.click();
    return setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  return h("button", { type: "button", class: "link-like", on: { click: open } }, name);
}

const dialog = document.getElementById("ask");

export function askToken() {
  document.getElementById("ask-error").textContent = "";
  document.getElementById("ask-token").value = "";
  dialog.showModal();
}

document.getElementById("ask-no").addEventListener("click", () => dialog.close());

dialog.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = document.getElementById("ask-token").value.trim();
  keepToken(given, document.getElementById("ask-keep").checked);
  try {
    await ask("api/queues");
  } catch (error) {
    if (error.status === 401) {
      forgetKeptToken();
      document.getElementById("ask-error").textContent = "The server refused this token.";
      document.getElementById("ask-token").select();
      return;
    }
  }
  dialog.close();
  followAgain();
  jobs.wake();
  say("The token is accepted.");
  changed();
});

export function forgetToken() {
  forgetKeptToken();
  forget();
  followAgain();
  changed();
}

// What a person does: buttons that change something, the token, copying.

import { h, say } from "./dom.js";
import { jobs, refuseToken } from "./jobs_feed.js";
import { TOKEN, changed, model, token } from "./model.js";
import { followAgain } from "./start_feed.js";
import { ask } from "./transport.js";

export function canAct() {
  const actions = model.start?.access?.actions;
  return actions === "open" || (actions === "token" && Boolean(token()));
}

async function act(key, path, done) {
  if (model.busy.has(key)) return;
  model.busy.add(key);
  changed();
  try {
    await ask(path, { method: "POST" });
    toast(done);
  } catch (error) {
    if (error.status === 401) {
      refuseToken();
      toast("The server refused the token.");
    } else toast(`Not done: ${error.message}`);
  } finally {
    model.busy.delete(key);
    jobs.slowAt = 0;
    jobs.soon(50);
    changed();
  }
}

export function button(key, label, path, done, about) {
  if (!canAct()) return null;
  const busy = model.busy.has(key);
  return h(
    "button",
    {
      type: "button",
      key,
      disabled: busy,
      "aria-label": `${label} ${about}`,
      on: { click: () => act(key, path, done) },
    },
    label,
  );
}

function toast(text) {
  model.toast = text;
  say(text);
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => {
    model.toast = null;
    changed();
  }, 4000);
  changed();
}

export function copyButton(text) {
  if (!navigator.clipboard) return null;
  const copy = (event) => {
    navigator.clipboard.writeText(text).then(
      () => toast("Copied."),
      () => toast("The browser does not allow copying."),
    );
    event.preventDefault();
  };
  return h("button", { type: "button", class: "plain", "aria-label": "Copy the SQL", on: { click: copy } }, "Copy");
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
  sessionStorage.setItem(TOKEN, given);
  try {
    await ask("api/queues");
  } catch (error) {
    if (error.status === 401) {
      sessionStorage.removeItem(TOKEN);
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
  sessionStorage.removeItem(TOKEN);
  model.jobs = { queues: null, running: null, failed: null, schedules: null, starts: null };
  jobs.slowAt = 0;
  followAgain();
  changed();
}

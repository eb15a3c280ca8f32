// Where the page is: `#/jobs?state=failed`. An address holds all that a view shows, so it can be kept and sent.

import { changed } from "./model.js";

/** What the address says: the view, the parts of its path, and its query. */
export function route() {
  const hash = location.hash.startsWith("#/") ? location.hash.slice(2) : "";
  const [path, query = ""] = hash.split(/\?(.*)/s);
  try {
    const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
    return { view: parts[0] ?? "overview", parts, query: new URLSearchParams(query) };
  } catch (error) {
    if (!(error instanceof URIError)) throw error;
    return { view: "overview", parts: [], query: new URLSearchParams() };
  }
}

/** The query string of what is given; empty values are left out. */
export function queryOf(values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values ?? {})) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  const text = query.toString();
  return text && `?${text}`;
}

/** The address of a view. */
export const to = (parts, query) => `#/${parts.map(encodeURIComponent).join("/")}${queryOf(query)}`;

/** Go there. */
export function go(parts, query) {
  location.hash = to(parts, query);
}

window.addEventListener("hashchange", () => {
  scrollTo(0, 0);
  changed();
  document.getElementById("main").focus({ preventScroll: true }); // whoever listens is in the new view
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the view's
  document.getElementById("main").focus();
});

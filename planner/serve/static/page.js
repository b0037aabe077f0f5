// The page works without this file: the form is a link, and its answer is written by the server. This file asks while
// knobs move, so that the answer is there at once, and says what changed.
"use strict";

const PAUSE_MS = 200; // between the last key and the question
const AGAIN_MS = 2000; // between two looks at a running launch

const form = document.getElementById("question");
const shown = document.getElementById("answer");
let asked = null; // the question whose answer is under way
let timer = null;

const fields = () => {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    for (const line of name === "set" ? value.split("\n") : [value]) {
      if (line.trim()) query.append(name, line.trim());
    }
  }
  return query;
};

const current = () => shown.querySelector("[data-query]")?.dataset.query;

async function text(url, signal) {
  const response = await fetch(url, { signal });
  return await response.text();
}

async function ask({ push = false } = {}) {
  asked?.abort();
  asked = new AbortController();
  const signal = asked.signal;
  const query = fields();
  const before = current();
  const url = "/answer?" + query + (before === undefined ? "" : "&before=" + encodeURIComponent(before));
  history[push ? "pushState" : "replaceState"](null, "", "/?" + query);
  shown.setAttribute("aria-busy", "true");
  try {
    const answer = await text(url, signal);
    const opened = [...shown.querySelectorAll("details")].map((part) => part.open);
    shown.innerHTML = answer;
    shown.querySelectorAll("details").forEach((part, i) => (part.open = opened[i] ?? false));
    shown.setAttribute("aria-busy", "false");
    await fill(signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    shown.setAttribute("aria-busy", "false");
    const told = document.createElement("p");
    told.className = "card lost";
    told.setAttribute("role", "alert");
    told.textContent = "The server does not answer. Is fitune serve still running?";
    if (!shown.querySelector(".lost")) shown.prepend(told);
  }
}

async function fill(signal) {
  for (const copy of shown.querySelectorAll(".copy")) copy.hidden = !navigator.clipboard;
  // One after the other: what could be traded is read first.
  for (const part of shown.querySelectorAll("[data-src]")) part.innerHTML = await text(part.dataset.src, signal);
}

function showFields(query) {
  for (const control of form.elements) {
    if (!control.name) continue;
    const values = query.getAll(control.name);
    if (control.type === "radio") control.checked = control.value === (values[0] ?? "");
    else control.value = values.join("\n");
    if (control.name === "gpu" && values[0] && control.value !== values[0]) {
      control.add(new Option(values[0], values[0], true, true), 0);
    }
  }
}

if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    ask({ push: true });
  });
  form.addEventListener("input", (event) => {
    clearTimeout(timer);
    // A name is asked for when it is complete: the Hub might be asked as well.
    const complete = event.target.name !== "model" || event.inputType === undefined || event.inputType === "insertReplacementText";
    if (complete) timer = setTimeout(ask, PAUSE_MS);
  });
  document.getElementById("model").addEventListener("change", () => ask());
  document.getElementById("model").addEventListener("focus", (event) => event.target.select());
  shown.addEventListener("click", (event) => {
    const link = event.target.closest("a.ask");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      showFields(new URL(link.href).searchParams);
      ask({ push: true }).then(() => document.getElementById("main").focus({ preventScroll: true }));
    }
    const copy = event.target.closest(".copy");
    if (copy) copyText(copy);
  });
  addEventListener("popstate", () => {
    showFields(new URLSearchParams(location.search));
    ask();
  });
  fill(new AbortController().signal).catch(() => {});
}

async function copyText(button) {
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
  const words = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = words), 1500);
}

const runs = document.getElementById("runs");
if (runs) {
  setInterval(async () => {
    if (document.hidden || !runs.querySelector(".live .dot")) return;
    try {
      runs.innerHTML = await text(runs.dataset.again);
    } catch {
      // The server is gone; what was last heard stays.
    }
  }, AGAIN_MS);
}

const themes = ["auto", "light", "dark"];
const button = document.getElementById("theme");
const showTheme = () => (button.textContent = "Theme: " + (document.documentElement.dataset.theme ?? "auto"));
button.hidden = false;
showTheme();
button.addEventListener("click", () => {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme ?? "auto") + 1) % themes.length];
  if (next === "auto") {
    delete root.dataset.theme;
    localStorage.removeItem("theme");
  } else {
    root.dataset.theme = next;
    localStorage.setItem("theme", next);
  }
  showTheme();
});

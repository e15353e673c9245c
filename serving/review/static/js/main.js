// The page: header with the views, the view itself, messages, dialogs, and keys that work everywhere.
import {html, render, useEffect} from "../vendor/htm-preact.js";
import {Dialogs} from "./dialogs.js";
import {Filters} from "./filters.js";
import {Gallery} from "./gallery.js";
import {onKey} from "./keys.js";
import {Plates} from "./plates.js";
import {Scores} from "./scores.js";
import {address, changed, start, state, undo, useStore} from "./store.js";
import {Viewer} from "./viewer.js";

function Header({run}) {
  const views = [["gallery", "Images"], ["scores", "Scores"], ...(run.plates.length ? [["plates", "Plates"]] : [])];
  const here = state.view === "image" ? "gallery" : state.view;
  return html`<header class="top">
    <h1><a href=${address("gallery", null, {})}>${run.name}</a></h1>
    <nav aria-label="Views">${views.map(([view, word]) => html`
      <a href=${address(view)} aria-current=${here === view ? "page" : null}>${word}</a>`)}</nav>
    <p class="counts" aria-label="Decisions">${[["accept", "accepted"], ["reject", "rejected"],
      ["correct-later", "to correct"], ["none", "open"], ["conflict", "disputed"]].map(([key, word]) =>
        key !== "conflict" || state.counts.conflict
          ? html`<span class=${key}><b>${(state.counts[key] ?? 0).toLocaleString("en")}</b> ${word}</span>` : null)}</p>
    <div class="who">
      <button class="plain" onClick=${() => ask("reviewer")}>${state.reviewer || "Your name"}</button>
      <button class="plain" onClick=${() => ask("export")}>Export</button>
      <button class="plain" onClick=${theme} aria-label="Dark or light">◐</button>
      <button class="plain" onClick=${() => ask("help")} aria-label="Help and keys">?</button>
    </div>
  </header>`;
}
function ask(kind) {
  state.dialog = {kind};
  changed();
}
function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("chorus-theme", root.dataset.theme);
}

function Toast() {
  const toast = state.toast;
  useEffect(() => {
    if (!toast) return undefined;
    const timer = setTimeout(() => { if (state.toast === toast) { state.toast = null; changed(); } }, toast.error ? 12000 : 6000);
    return () => clearTimeout(timer);
  }, [toast]);
  return html`<div class="toasts" role="status" aria-live="polite">${toast && html`
    <div class=${toast.error ? "toast error" : "toast"}><span>${toast.text}</span>
      ${toast.undo && html`<button onClick=${undo}>Undo <kbd>u</kbd></button>`}</div>`}</div>`;
}

function App() {
  const {run, error, view} = useStore();
  useEffect(() => {
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  if (error) return html`<main class="starting" role="alert">${error}</main>`;
  if (!run) return html`<p class="starting" role="status">Opening the run …</p>`;
  const body = {gallery: Gallery, image: Viewer, scores: Scores, plates: Plates}[view];
  return html`<${Header} run=${run} />
    ${run.notes.length > 0 && view === "gallery" && html`<p class="notes">${run.notes.join("; ")}</p>`}
    ${view === "gallery" && html`<${Filters} run=${run} />`}
    <main class=${view}><${body} run=${run} /></main>
    <${Toast} /><${Dialogs} run=${run} />`;
}

render(html`<${App} />`, document.getElementById("app"), document.querySelector(".starting"));
start();

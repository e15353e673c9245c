// What all parts of the page know: the run, where one is (in the address), the list, decisions, messages.
import {useEffect, useReducer} from "../vendor/htm-preact.js";
import {get, post} from "./api.js";
import {List} from "./list.js";

const MANY = ["flag", "status", "beyond"];
const ONE = ["sort", "order", "reason", "plate", "well", "class", "decision", "search"];
export const WORDS = {accept: "Accepted", reject: "Rejected", "correct-later": "To correct"};

export const state = {
  run: null, error: "", view: "gallery", name: null, filters: {}, list: null, selected: 0,
  decided: new Map(), counts: {}, log: 0, mine: [], toast: null, dialog: null,
  reviewer: localStorage.getItem("chorus-reviewer") ?? "",
};
const listeners = new Set();
export function changed() { listeners.forEach((listener) => listener()); }
export function useStore() {
  const [, again] = useReducer((count) => count + 1, 0);
  useEffect(() => { listeners.add(again); return () => listeners.delete(again); }, []);
  return state;
}

// ---- where one is: #/view/name?filters ----
export function address(view, name = null, filters = state.filters) {
  const query = new URLSearchParams();
  for (const key of [...ONE, ...MANY]) for (const value of [filters[key] ?? []].flat()) if (value !== "") query.append(key, value);
  const text = query.toString();
  return `#/${view}${name === null ? "" : `/${encodeURIComponent(name)}`}${text ? `?${text}` : ""}`;
}
export function go(view, name = null, filters = state.filters) { location.hash = address(view, name, filters); }
export function narrow(change) {
  const filters = {...state.filters, ...change};
  for (const key of Object.keys(filters)) if (filters[key] === null || filters[key] === "" || filters[key]?.length === 0) delete filters[key];
  state.selected = 0;
  history.replaceState(null, "", address(state.view, state.name, filters));
  read();
}
function read() {
  const [path, text = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, name] = path.split("/");
  const query = new URLSearchParams(text), filters = {};
  for (const key of ONE) if (query.get(key)) filters[key] = query.get(key);
  for (const key of MANY) if (query.has(key)) filters[key] = query.getAll(key);
  const before = state.view;
  state.view = ["image", "scores", "plates"].includes(view) ? view : "gallery";
  state.name = state.view === "image" && name !== undefined ? decodeURIComponent(name) : null;
  if (!state.list || JSON.stringify(filters) !== JSON.stringify(state.filters)) {
    state.filters = filters;
    state.list = new List(filters, changed, known);
  }
  if (before !== state.view) state.toast = state.toast?.error ? null : state.toast;
  document.title = state.name ? `${state.name} · Chorus review` : `${state.run?.name ?? ""} · Chorus review`;
  changed();
}

// ---- decisions ----
function known(rows) {
  for (const row of rows) if (row.decision && !state.decided.has(row.name)) state.decided.set(row.name, row.decision);
}
export async function decide(name, decision, note = "") {
  if (!state.run.writable) return say("This page is for looking only.");
  if (!state.reviewer && !(await askReviewer())) return false;
  try {
    took(await post("decisions", {image: name, decision, note, reviewer: state.reviewer}), name, WORDS[decision]);
    return true;
  } catch (error) { return complain(error); }
}
function took(answer, name, words) {
  state.mine.push({id: answer.id, name});
  state.decided.set(name, answer.state);
  state.counts = answer.counts;
  const others = answer.state.conflict ? `; you and ${others_of(answer.state).join(", ")} disagree` : "";
  state.toast = {text: `${words}: ${name}${others}`, undo: true};
  changed();
}
export async function undo() {
  const last = state.mine.at(-1);
  if (!last) return say("There is nothing of yours to undo.");
  try {
    const answer = await post("undo", {id: last.id, reviewer: state.reviewer});
    state.mine.pop();
    state.decided.set(last.name, answer.state);
    state.counts = answer.counts;
    state.toast = {text: `Undone: ${last.name}`, undo: state.mine.length > 0};
    changed();
    return true;
  } catch (error) { return complain(error); }
}
export const others_of = (decision) => {
  const last = decision.verdicts[0], own = decision.verdicts.find((one) => one.reviewer === state.reviewer) ?? last;
  return decision.verdicts.filter((one) => one.decision !== own.decision).map((one) => one.reviewer);
};
export function say(text) { state.toast = {text}; changed(); return false; }
export function complain(error) { state.toast = {text: error.message, error: true}; changed(); return false; }
export function askReviewer() {
  return new Promise((resolve) => { state.dialog = {kind: "reviewer", resolve}; changed(); });
}
export function setReviewer(name) {
  state.reviewer = name.trim().slice(0, 80);
  state.mine = [];
  localStorage.setItem("chorus-reviewer", state.reviewer);
}

async function poll() {
  // What others decide is seen within seconds; a page in the background does not ask.
  if (document.visibilityState === "visible" && state.run) {
    try {
      const news = await get("decisions", {since: state.log});
      const names = Object.keys(news.images);
      for (const name of names) state.decided.set(name, news.images[name]);
      if (names.length || news.log !== state.log) {
        state.log = news.log;
        state.counts = news.counts;
        changed();
      }
      if (state.lost) { state.lost = false; say("The server answers again."); }
    } catch (error) {
      if (!state.lost) { state.lost = true; complain(error); }
    }
  }
  setTimeout(poll, 3000);
}
export async function start() {
  window.addEventListener("hashchange", read);
  try {
    const about = get("run");
    read();
    state.run = await about;
    state.reviewer = state.run.reviewer ?? state.reviewer;  // who signed in has a name already
    state.counts = state.run.decisions;
    state.log = state.run.log;
    document.title = `${state.run.name} · Chorus review`;
  } catch (error) { state.error = error.message; }
  changed();
  setTimeout(poll, 3000);
}

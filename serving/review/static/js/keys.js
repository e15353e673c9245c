// Keys that work in the gallery and in the viewer; views add their own under `keys`.
import {changed, decide, go, state, undo} from "./store.js";

const keys = {current: {}};
const DECISIONS = {a: "accept", r: "reject", c: "correct-later"};

// To be called in an effect: `own` work until what this gives is called, or another view has set its keys.
export function claim(own) {
  keys.current = own;
  return () => { if (keys.current === own) keys.current = {}; };
}

export function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (state.dialog) return;  // the dialog's own
  const field = event.target.closest?.("input:not([type=checkbox]), select, textarea");
  if (field) {
    if (event.key === "Escape") field.blur();
    return;
  }
  const act = keys.current[event.key] ?? everywhere(event.key);
  if (!act) return;
  event.preventDefault();
  act();
}

function everywhere(key) {
  if (key === "?") return () => { state.dialog = {kind: "help"}; changed(); };
  if (key === "u") return undo;
  if (key === "g") return () => go("gallery");
  if (key === "/") return () => document.querySelector("#search")?.focus();
  return null;
}

// Decide on the image that is looked at, then go to the next.
export function deciding(current, next) {
  const note = () => document.querySelector("#note")?.value ?? "";
  return Object.fromEntries(Object.entries(DECISIONS).map(([key, decision]) => [key, async () => {
    const row = current();
    if (row && (await decide(row.name, decision, note()))) next();
  }]));
}

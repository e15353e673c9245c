// Help with all keys, the reviewer's name, and ways to take decisions elsewhere.
import {html, useEffect, useRef, useState} from "../vendor/htm-preact.js";
import {signOut} from "./api.js";
import {changed, complain, setReviewer, state} from "./store.js";

const KEYS = [["j, k", "next image, the one before"], ["arrows, Page Up, Page Down", "move in the gallery; pan in an image"], ["Enter", "open the image"],
  ["a, r, c", "accept, reject, correct later; then on to the next"], ["u", "undo your last decision"], ["/", "search"], ["Escape, g", "back to the gallery"],
  ["1 to 9", "layers on and off"], ["s", "side by side"], ["f, +, −", "fit, closer, farther"], ["[ and ], { and }", "plane z, time t"], ["n", "write a note"], ["?", "this help"]];

export function Dialogs({run}) {
  const {dialog} = state, box = useRef(null);
  useEffect(() => { if (dialog && !box.current.open) box.current.showModal(); }, [dialog]);
  if (!dialog) return null;
  const close = (value) => {
    dialog.resolve?.(value ?? false);
    state.dialog = null;
    changed();
  };
  const body = {help: Help, reviewer: Reviewer, export: Export}[dialog.kind];
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onCancel=${(event) => { event.preventDefault(); close(); }}
    onClick=${(event) => event.target === box.current && close()}><${body} run=${run} close=${close} /></dialog>`;
}

function Help({close}) {
  return html`<h2 id="dialog-title">Keys</h2><dl class="keys">${KEYS.map(([key, word]) => html`<dt><kbd>${key}</kbd></dt><dd>${word}</dd>`)}</dl>
    <p class="soft">What two reviewers decide differently is marked as disputed; the last word holds until one of them changes theirs.</p>
    <button autofocus onClick=${() => close()}>Close</button>`;
}

function Reviewer({run, close}) {
  const field = useRef(null);
  if (run.reviewer) return html`<h2 id="dialog-title">Signed in as ${run.reviewer}</h2>
    <p class="soft">Decisions carry this name.</p>
    <p class="row"><button autofocus onClick=${() => close()}>Close</button><button onClick=${() => signOut().catch(complain)}>Sign out</button></p>`;
  const save = (event) => {
    event.preventDefault();
    if (field.current.value.trim()) { setReviewer(field.current.value); close(true); }
  };
  return html`<form onSubmit=${save}><h2 id="dialog-title">Who reviews?</h2>
    <p class="soft">Decisions carry your name, so that others see whose they are.</p>
    <label>Name <input ref=${field} autofocus required maxlength="80" defaultValue=${state.reviewer} autocomplete="name" /></label>
    <p class="row"><button type="submit" class="main">Save</button><button type="button" onClick=${() => close()}>Cancel</button></p></form>`;
}

const DECIDED = [["accept", "accepted"], ["reject", "rejected"], ["correct-later", "to correct"]];
const FORMS = [["geojson", "GeoJSON for QuPath"], ["rois", "ROI sets for ImageJ"]];

function Outlines({run}) {
  const [decided, setDecided] = useState("accept"), count = state.counts[decided] ?? 0;
  if (!run.objects) return html`<p class="soft">Outlines of objects can be taken along after <code>chorus objects</code>.</p>`;
  return html`<h3>Outlines of objects</h3><div class="row outlines">
    <label>Of images that are <select value=${decided} onChange=${(event) => setDecided(event.target.value)}>
      ${DECIDED.map(([kind, word]) => html`<option value=${kind}>${word} (${(state.counts[kind] ?? 0).toLocaleString("en")})</option>`)}</select></label>
    ${FORMS.map(([kind, word]) => count
      ? html`<a class="button" href=${`api/outlines.zip?kind=${kind}&decided=${decided}`} download>${word}</a>`
      : html`<button disabled>${word}</button>`)}</div>`;
}

function Export({run, close}) {
  const out = /[^\w@%+=:,./-]/.test(run.results) ? `'${run.results.replaceAll("'", "'\\''")}'` : run.results;
  const lines = [["Images to correct and to train on, with the prediction as a draft", `chorus export annotation ${out} --decided correct-later --out to-correct/`],
    ["Objects of accepted images as ImageJ ROI sets", `chorus export rois ${out} --decided accept --out rois/`],
    ["Objects of accepted images for QuPath", `chorus export geojson ${out} --decided accept --out qupath/`]];
  return html`<h2 id="dialog-title">Export</h2>
    <p><a class="button" href="api/decisions.csv" download>Decisions as CSV</a></p>
    <${Outlines} run=${run} />
    <p class="soft">More is written where the results are${run.results === "OUT" ? " (OUT)" : ""}, by commands:</p>
    ${lines.map(([word, line]) => html`<h3>${word}</h3><p class="command"><code tabindex="0">${line}</code>
      <button onClick=${() => navigator.clipboard?.writeText(line)} aria-label=${`Copy the command: ${word}`}>Copy</button></p>`)}
    <button autofocus onClick=${() => close()}>Close</button>`;
}

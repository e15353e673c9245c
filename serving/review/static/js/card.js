// One image in the gallery: its strip of pictures, why it is here, its scores, and what was decided.
import {html} from "../vendor/htm-preact.js";
import {thumbnail} from "./api.js";
import {WORDS, address, decide, others_of, state} from "./store.js";

export const show = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

export function Card({index, total, row, run, place, selected, select}) {
  if (!row) return html`<li class="card waiting" style=${place} aria-setsize=${total} aria-posinset=${index + 1}><span class="unseen">loading</span></li>`;
  const decided = state.decided.get(row.name);
  const facts = run.quantities.filter((one) => one.first && row.values[one.key] !== null).slice(0, 5);
  return html`<li class=${`card${selected ? " selected" : ""} ${decided?.decision ?? ""}`} style=${place} data-index=${index}
      aria-setsize=${total} aria-posinset=${index + 1}>
    <a href=${address("image", row.name)} onClick=${select} onFocus=${select}>
      <${Strip} row=${row} version=${state.list.version} />
      <span class="title">${row.rank && html`<span class="rank">${row.rank}</span> `}<span class="name" title=${row.name}>${row.name}</span>
        <span class="unseen">${[...marks(row, run).map(([, label]) => label), decided?.decision ? WORDS[decided.decision] : ""].filter(Boolean).join(", ")}</span></span>
    </a>
    <p class="said">${marks(row, run).map(([name, label]) => html`<span class=${`chip ${name}`}>${label}</span>`)}
      ${row.reasons[0] ?? row.message}</p>
    <p class="facts">${facts.map((one) => html`<span>${one.label} <b>${show(row.values[one.key], one.digits)}</b></span>`)}</p>
    <div class="decide"><${Verdict} decided=${decided} />
      ${run.writable && [["accept", "✓", "Accept"], ["reject", "✕", "Reject"], ["correct-later", "✎", "Correct later"]].map(([kind, sign, word]) => html`
        <button class=${kind} aria-pressed=${decided?.decision === kind} aria-label=${`${word}: ${row.name}`} title=${word}
          onClick=${() => decide(row.name, kind)}>${sign}</button>`)}</div>
  </li>`;
}

function Strip({row, version}) {
  const gone = (event) => { event.target.style.visibility = "hidden"; };
  return html`<span class="strip"><img src=${thumbnail(row, version)} alt="" loading="lazy" decoding="async" onError=${gone} key=${row.name} /></span>`;
}

// Status and flags of an image, each with its label.
export function marks(row, run) {
  const names = [...(row.status === "done" ? [] : [row.status]), ...row.flags, ...(row.review ? ["review"] : [])];
  return names.map((name) => [name, run.flag_labels[name] ?? name]);
}

export function Verdict({decided}) {
  if (!decided?.decision) return html`<span class="verdict"></span>`;
  const [last] = decided.verdicts;
  const dispute = decided.conflict
    ? `${decided.verdicts.some((one) => one.reviewer === state.reviewer) ? "you" : last.reviewer} and ${others_of(decided).join(", ")} disagree` : "";
  return html`<span class=${`verdict ${decided.decision}`}><b>${WORDS[decided.decision]}</b>
    ${dispute ? html` <em>${dispute}</em>` : ` by ${last.reviewer === state.reviewer ? "you" : last.reviewer}`}
    ${last.note && html` <q title=${last.note}>${last.note}</q>`}</span>`;
}

// Heat maps of plates: the median of a score in each well; a well opens its images.
import {html, useEffect, useState} from "../vendor/htm-preact.js";
import {get} from "./api.js";
import {show} from "./card.js";
import {go, state} from "./store.js";

// matplotlib's inferno at 0, 0.1, ..., 1, as in the report.
const COLORS = ["#000004", "#160b39", "#420a68", "#6a176e", "#932667", "#bc3754", "#dd513a", "#f37819", "#fca50a", "#f6d746", "#fcffa4"];
const bands = COLORS.map((color) => [1, 3, 5].map((at) => Number.parseInt(color.slice(at, at + 2), 16)));

export function Plates({run}) {
  const shown = run.quantities.filter((one) => one.first || one.key in Plates.tried);
  const [plate, setPlate] = useState(state.filters.plate ?? run.plates[0]), [score, setScore] = useState(Plates.score ?? shown[0]?.key);
  const [data, setData] = useState(null), [error, setError] = useState("");
  useEffect(() => {
    let gone = false;
    Plates.score = score;
    get("plate", {plate, score}).then((found) => { if (!gone) { setData(found); setError(""); } }).catch((problem) => !gone && setError(problem.message));
    return () => { gone = true; };
  }, [plate, score, run.version]);
  const quantity = run.quantities.find((one) => one.key === score);
  return html`<div class="page"><h2>Plates</h2>
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <label>Plate <select value=${plate} onChange=${(event) => setPlate(event.target.value)}>${run.plates.map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
      <label>Score <select value=${score} onChange=${(event) => setScore(event.target.value)}>${shown.map((one) => html`<option value=${one.key}>${one.label}</option>`)}</select></label>
      ${data && html`<span class="scale">${show(data.limits[0], quantity.digits)} <i class="ramp" aria-hidden="true" style=${{background: `linear-gradient(to right, ${COLORS.join(",")})`}}></i> ${show(data.limits[1], quantity.digits)}</span>`}
    </form>
    ${error ? html`<p role="alert">${error}</p>` : data ? html`<${Wells} data=${data} quantity=${quantity} />` : html`<p class="soft">counting …</p>`}
    <p class="soft">The median of each well's images. A well opens them.</p></div>`;
}
Plates.tried = {};

function Wells({data, quantity}) {
  const wells = new Map(data.wells.map((one) => [`${one.row},${one.column}`, one]));
  const open = (row, column) => { state.selected = 0; go("gallery", null, {plate: data.plate, well: `${row}/${column}`}); };
  return html`<div class="wide"><table class="plate"><caption class="unseen">${quantity.label} on ${data.plate}, median of each well</caption>
    <thead><tr><td></td>${data.columns.map((column) => html`<th scope="col">${column}</th>`)}</tr></thead>
    <tbody>${data.rows.map((row, y) => html`<tr><th scope="row">${row}</th>${data.columns.map((column, x) => {
      const well = wells.get(`${y},${x}`);
      if (!well) return html`<td><i></i></td>`;
      const text = `${row}${column}: ${show(well.value, quantity.digits)}, ${well.images} image${well.images === 1 ? "" : "s"}`;
      return html`<td><button title=${text} aria-label=${text} onClick=${() => open(row, column)} class=${well.value === null ? "none" : ""}
        style=${well.value === null ? {} : {background: color(well.value, data.limits)}}></button></td>`;
    })}</tr>`)}</tbody></table></div>`;
}

function color(value, [low, high]) {
  const at = Math.min(1, Math.max(0, (value - low) / (high - low))) * (bands.length - 1);
  const floor = Math.min(Math.floor(at), bands.length - 2), share = at - floor;
  return `rgb(${bands[floor].map((band, index) => Math.round(band + share * (bands[floor + 1][index] - band))).join()})`;
}

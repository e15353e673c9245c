// How scores are distributed, and what a threshold would single out: drag the handle, then look at those images.
import {html, useEffect, useRef, useState} from "../vendor/htm-preact.js";
import {get} from "./api.js";
import {go, state} from "./store.js";

export function Scores({run}) {
  const known = run.quantities.filter((one) => one.first), rest = run.quantities.filter((one) => !one.first);
  const [more, setMore] = useState(false);
  return html`<div class="page"><h2>Scores</h2>
    <p class="soft">Drag a handle, or move it with the arrow keys, to see how many images are beyond it; then open them.</p>
    <div class="plots">${(more ? [...known, ...rest] : known).map((one) => html`<${Plot} key=${one.key} quantity=${one} run=${run} />`)}</div>
    ${rest.length > 0 && html`<button onClick=${() => setMore(!more)} aria-expanded=${more}>${more ? "Fewer scores" : `${rest.length} more scores`}</button>`}</div>`;
}

const W = 420, H = 150, LEFT = 8, RIGHT = 8, BASE = 126;

function Plot({quantity, run}) {
  const [data, setData] = useState(null), [error, setError] = useState(""), [limit, setLimit] = useState(null), [count, setCount] = useState(null);
  const svg = useRef(null), drag = useRef(false), timer = useRef(0);
  useEffect(() => {
    get("distribution", {score: quantity.key}).then((found) => { setData(found); setLimit(start(found)); }).catch((problem) => setError(problem.message));
  }, [quantity.key, run.version]);
  const filters = limit === null ? {} : {beyond: [`${quantity.key}:${limit}`], sort: quantity.key};
  useEffect(() => {
    if (limit === null) return undefined;
    clearTimeout(timer.current);
    timer.current = setTimeout(() => get("images", {...filters, limit: 0}).then((found) => setCount(found.total)).catch(() => setCount(null)), 80);
    return () => clearTimeout(timer.current);
  }, [limit]);
  if (error) return html`<section class="card plot"><h3>${quantity.label}</h3><p role="alert">${error}</p></section>`;
  if (!data) return html`<section class="card plot"><h3>${quantity.label}</h3><p class="soft">counting …</p></section>`;
  const low = data.edges[0], high = data.edges.at(-1), span = high - low || 1;
  const x = (value) => LEFT + ((value - low) / span) * (W - LEFT - RIGHT), value = (at) => low + ((at - LEFT) / (W - LEFT - RIGHT)) * span;
  const top = Math.max(...data.counts, 1), most = data.reference ? Math.max(...data.reference, 1) : 1;
  const bound = (wanted) => Number(Math.min(Math.max(wanted, low), high).toPrecision(5));
  const to = (event) => {
    const box = svg.current.getBoundingClientRect();
    setLimit(bound(value(((event.clientX - box.left) / box.width) * W)));
  };
  const key = (event) => {
    const by = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10}[event.key];
    const wanted = by ? limit + (by * span) / 200 : {Home: low, End: high}[event.key];
    if (wanted === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    setLimit(bound(wanted));
  };
  const marks = data.thresholds.filter((one) => one.value >= low && one.value <= high);
  const said = count === null ? "…" : `${count.toLocaleString("en")} of ${run.images.toLocaleString("en")} images (${((100 * count) / run.images).toPrecision(2)} %)`;
  const reference = data.reference?.map((n, i) => `${x((data.edges[i] + data.edges[i + 1]) / 2).toFixed(1)},${(BASE - (n / most) * (BASE - 12)).toFixed(1)}`).join(" ");
  const beyond = data.low_is_bad ? [LEFT, x(limit)] : [x(limit), W - RIGHT];
  return html`<section class="card plot" aria-label=${quantity.label}>
    <h3>${quantity.label}</h3>
    <svg ref=${svg} viewBox=${`0 0 ${W} ${H}`} role="group" aria-label=${`Distribution of ${quantity.label}: median ${data.median?.toPrecision(3) ?? "none"}`}
      onPointerMove=${(event) => drag.current && to(event)} onPointerUp=${() => { drag.current = false; }}>
      <rect class="beyond" x=${beyond[0]} y="6" width=${Math.max(0, beyond[1] - beyond[0])} height=${BASE - 6} />
      ${data.counts.map((n, i) => n > 0 && html`<rect class="bar" x=${x(data.edges[i]).toFixed(1)} width=${Math.max(0.6, (W - LEFT - RIGHT) / data.counts.length - 0.6).toFixed(2)}
        y=${(BASE - Math.max(1, (n / top) * (BASE - 12))).toFixed(1)} height=${Math.max(1, (n / top) * (BASE - 12)).toFixed(1)} />`)}
      ${reference && html`<polyline class="reference" points=${reference} />`}
      ${marks.map((one) => html`<line class="mark" x1=${x(one.value)} x2=${x(one.value)} y1="6" y2=${BASE}><title>${one.name}: ${one.value.toPrecision(3)}</title></line>`)}
      <line class="base" x1=${LEFT} x2=${W - RIGHT} y1=${BASE} y2=${BASE} />
      <text x=${LEFT} y=${H - 8}>${low.toPrecision(3)}</text><text x=${W - RIGHT} y=${H - 8} text-anchor="end">${high.toPrecision(3)}</text>
      <g class="handle" tabindex="0" role="slider" aria-label=${`Threshold of ${quantity.label}`} aria-valuemin=${low} aria-valuemax=${high} aria-valuenow=${limit}
        aria-valuetext=${`${limit.toPrecision(3)}, ${said} beyond`} onKeyDown=${key}
        onPointerDown=${(event) => { drag.current = true; svg.current.setPointerCapture?.(event.pointerId); event.preventDefault(); event.currentTarget.focus(); }}>
        <rect class="grip" x=${x(limit) - 12} y="0" width="24" height=${BASE + 8} /><line x1=${x(limit)} x2=${x(limit)} y1="4" y2=${BASE} />
        <circle cx=${x(limit)} cy=${BASE} r="7" /></g></svg>
    <p class="soft">${reference ? html`<span class="key line">reference set</span> ` : null}${marks.map((one) => html`
      <button class="plain small" onClick=${() => setLimit(bound(one.value))} title=${one.name}>${one.name}: ${one.value.toPrecision(3)}</button>`)}</p>
    <p role="status"><b>${data.low_is_bad ? "≤" : "≥"} ${limit.toPrecision(3)}</b>: ${said}
      <button class="small" disabled=${!count} onClick=${() => { state.selected = 0; go("gallery", null, filters); }}>Look at them</button></p>
  </section>`;
}

function start(data) {
  // At the threshold that the reference set gives, else where the worst twentieth begins.
  if (data.thresholds.length) return data.thresholds[0].value;
  const total = data.counts.reduce((sum, n) => sum + n, 0);
  const order = data.low_is_bad ? data.counts.map((n, i) => [n, data.edges[i + 1]]) : data.counts.map((n, i) => [n, data.edges[i]]).reverse();
  let sum = 0;
  for (const [n, edge] of order) {
    sum += n;
    if (sum >= total / 20) return Number(edge.toPrecision(5));
  }
  return data.edges[0];
}

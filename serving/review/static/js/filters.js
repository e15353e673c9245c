// What the gallery is sorted by and narrowed to.
import {html, useEffect, useRef, useState} from "../vendor/htm-preact.js";
import {narrow, state} from "./store.js";

const DECIDED = [["none", "not decided"], ["any", "decided"], ["accept", "accepted"], ["reject", "rejected"],
  ["correct-later", "to correct"], ["conflict", "disputed"]];

export function Filters({run}) {
  const {filters, list} = state, [open, setOpen] = useState(false);
  const set = (key) => (event) => narrow({[key]: event.target.value});
  const marks = [...Object.entries(run.statuses).map(([name, count]) => [`status:${name}`, name, count]),
    ...Object.entries(run.flags).filter(([name]) => !(name in run.statuses))
      .map(([name, count]) => [`flag:${name}`, run.flag_labels[name] ?? name, count])];
  const mark = filters.flag?.length ? `flag:${filters.flag[0]}` : filters.status?.length ? `status:${filters.status[0]}` : "";
  const setMark = (event) => {
    const [kind, name] = event.target.value.split(":");
    narrow({flag: kind === "flag" ? [name] : null, status: kind === "status" ? [name] : null});
  };
  const more = ["reason", "class", "plate", "well"].filter((key) => filters[key]).length;
  return html`<form class="filters" role="search" aria-label="Narrow and sort images" onSubmit=${(event) => event.preventDefault()}>
    <label class="grow">Search <${Search} /></label>
    <label>Sort by <select value=${filters.sort ?? "rank"} onChange=${set("sort")}>
      <option value="rank">${run.judged ? "risk (as flagged)" : "uncertainty (as reported)"}</option>
      <option value="name">name</option>
      ${run.quantities.map((one) => html`<option value=${one.key}>${one.label}</option>`)}</select></label>
    <label>Order <select value=${filters.order ?? "worst"} onChange=${set("order")}>
      <option value="worst">${filters.sort === "name" ? "A to Z" : "worst first"}</option>
      <option value="best">${filters.sort === "name" ? "Z to A" : "best first"}</option></select></label>
    <label>Only <select value=${mark} onChange=${setMark}><option value="">all</option>
      ${marks.map(([value, word, count]) => html`<option value=${value}>${word} (${count.toLocaleString("en")})</option>`)}</select></label>
    <label>Decision <select value=${filters.decision ?? ""} onChange=${set("decision")}><option value="">any or none</option>
      ${DECIDED.map(([value, word]) => html`<option value=${value}>${word}</option>`)}</select></label>
    <button type="button" aria-expanded=${open} aria-controls="more" onClick=${() => setOpen(!open)}>More${more ? ` (${more})` : ""}</button>
    <div id="more" class="more" hidden=${!open}>
      ${Object.keys(run.reasons).length > 0 && html`<label>Reason <select value=${filters.reason ?? ""} onChange=${set("reason")}>
        <option value="">any</option>${Object.entries(run.reasons).map(([name, count]) => html`<option value=${name}>${name} (${count})</option>`)}</select></label>`}
      ${run.classes.length > 1 && html`<label>Has class <select value=${filters.class ?? ""} onChange=${set("class")}>
        <option value="">any</option>${run.classes.slice(1).map((one) => html`<option value=${one.name}>${one.name}</option>`)}</select></label>`}
      ${run.plates.length > 0 && html`<label>Plate <select value=${filters.plate ?? ""} onChange=${(event) => narrow({plate: event.target.value, well: null})}>
        <option value="">all</option>${run.plates.map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
        <label>Well <input type="text" placeholder="A/01" value=${filters.well ?? ""} onChange=${set("well")} /></label>`}
    </div>
    <${Chips} run=${run} />
    <p class="found" role="status">${list.error || (list.total === null ? "looking …"
      : `${list.total.toLocaleString("en")} ${list.total === 1 ? "image" : "images"}${list.total === run.images ? "" : ` of ${run.images.toLocaleString("en")}`}`)}</p>
  </form>`;
}

function Search() {
  const given = state.filters.search ?? "", [text, setText] = useState(given), timer = useRef(0);
  useEffect(() => setText(given), [given]);
  const later = (event) => {
    const value = event.target.value;
    setText(value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => narrow({search: value.trim()}), 250);
  };
  return html`<input id="search" type="search" value=${text} onInput=${later} placeholder="name, reason or message" maxlength="200" />`;
}

// Filters that no field shows, each with a way out; and one for all.
function Chips({run}) {
  const {filters} = state, label = (key) => run.quantities.find((one) => one.key === key)?.label ?? key;
  const chips = (filters.beyond ?? []).map((text) => {
    const at = text.lastIndexOf(":"), key = text.slice(0, at);
    const sign = run.quantities.find((one) => one.key === key)?.low_is_bad ? "≤" : "≥";
    return [`${label(key)} ${sign} ${Number(text.slice(at + 1)).toPrecision(3)}`,
      () => narrow({beyond: filters.beyond.filter((one) => one !== text)})];
  });
  if (filters.well) chips.push([`well ${filters.well}`, () => narrow({well: null, plate: null})]);
  if (filters.reason) chips.push([`reason: ${filters.reason}`, () => narrow({reason: null})]);
  const any = Object.keys(filters).some((key) => key !== "sort" && key !== "order");
  if (!any) return null;
  const nothing = Object.fromEntries(Object.keys(filters).filter((key) => key !== "sort" && key !== "order").map((key) => [key, null]));
  return html`<p class="chips">${chips.map(([text, out]) => html`
    <button type="button" class="chip" onClick=${out} aria-label=${`Remove the filter ${text}`}>${text} ×</button>`)}
    <button type="button" class="chip" onClick=${() => narrow(nothing)}>Show all</button></p>`;
}

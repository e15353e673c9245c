// The list of layers beside an image: which are seen, in which colour, between which values, how strongly.
import {html} from "../vendor/htm-preact.js";
import {words} from "./looks.js";

const TITLES = {channel: "Image", labels: "Labels", map: "Maps"};

export function Layers({image, looks, change, split}) {
  const kinds = ["channel", "labels", "map"].filter((kind) => image.layers.some((one) => one.kind === kind));
  let number = 0;
  return html`${kinds.map((kind) => html`<fieldset class="layers"><legend>${TITLES[kind]}</legend>
    ${image.layers.filter((one) => one.kind === kind).map((layer) => {
      number += 1;
      return html`<${Layer} key=${layer.id} layer=${layer} look=${looks.get(layer.id)} number=${number} split=${split}
        change=${(part) => change(layer, part)} />`;
    })}</fieldset>`)}`;
}

function Layer({layer, look, number, split, change}) {
  const name = words(layer), set = (key, read = Number) => (event) => change({[key]: read(event.target.value)});
  return html`<div class="layer">
    <label class="switch"><input type="checkbox" checked=${look.on} onChange=${(event) => change({on: event.target.checked})} />
      ${layer.kind === "channel" && html`<i class="swatch" style=${{background: `#${look.color}`}}></i>`}<span>${name}</span>
      ${number < 10 && html`<kbd>${number}</kbd>`}</label>
    ${look.on && html`<div class="settings">
      ${split && html`<label>Side <select value=${look.side} aria-label=${`${name}: side`} onChange=${set("side", String)}>
        <option value="left">left</option><option value="right">right</option><option value="both">both</option></select></label>`}
      ${layer.kind === "labels" && html`<label>Draw <select value=${look.style} onChange=${set("style", String)} aria-label=${`${name}: draw`}>
        <option value="line">lines</option><option value="fill">areas</option></select></label>`}
      ${layer.kind === "channel" && html`<label>Colour <input type="color" value=${`#${look.color}`} aria-label=${`${name}: colour`}
        onInput=${set("color", (value) => value.slice(1))} /></label>`}
      ${layer.kind !== "labels" && html`<${Range} layer=${layer} look=${look} name=${name} change=${change} />`}
      <label class="wide">Opacity <input type="range" min="0" max="1" step="0.05" value=${look.opacity} onInput=${set("opacity")}
        aria-label=${`${name}: opacity`} /></label>
    </div>`}
  </div>`;
}

function Range({layer, look, name, change}) {
  // Sliders go a little beyond what is suggested; any value can be typed.
  const [low, high] = layer.contrast, span = high - low;
  const from = layer.kind === "map" ? low : Math.min(0, low), to = layer.kind === "map" ? high : high + span;
  const step = layer.dtype.startsWith("float") ? span / 200 : Math.max(1, Math.round(span / 200));
  const round = (value) => Number(Number(value).toPrecision(5));
  const set = (key) => (event) => {
    const value = Number(event.target.value);
    if (Number.isFinite(value) && event.target.value !== "") change({[key]: value});
  };
  const scale = layer.colors && html`<i class="ramp" aria-hidden="true" style=${{background: `linear-gradient(to right, ${layer.colors.join(",")})`}}></i>`;
  return html`${[["low", layer.kind === "map" ? "From" : "Black"], ["high", layer.kind === "map" ? "To" : "White"]].map(([key, word]) => html`
    <label class="wide">${word} <input type="range" min=${from} max=${to} step=${step} value=${look[key]} onInput=${set(key)} aria-label=${`${name}: ${word}`} />
      <input type="number" step="any" value=${round(look[key])} onChange=${set(key)} aria-label=${`${name}: ${word}, value`} /></label>`)}
    ${scale}
    <button type="button" class="plain small" onClick=${() => change({low, high})}>As suggested</button>`;
}

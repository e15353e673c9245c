// How layers are shown: kept while one goes from image to image, since what one wants to see stays the same.
import {state} from "./store.js";

const PALETTE = ["00a2ff", "00ff66", "ff3b6b", "ffd000", "c46bff", "ffffff"];
const kept = new Map();

export function looksOf(image) {
  const channels = image.layers.filter((one) => one.kind === "channel"), looks = new Map();
  for (const layer of image.layers) {
    const key = `${layer.kind} ${layer.name}`, known = kept.get(key);
    const fresh = {on: first(layer, channels, image), opacity: layer.kind === "map" ? 0.8 : 1, style: "line", side: layer.kind === "map" ? "right" : "left"};
    const own = {low: layer.contrast?.[0], high: layer.contrast?.[1]};
    if (layer.kind === "channel") {
      // Of one channel grey says more than a colour.
      own.color = channels.length === 1 ? "ffffff" : known?.color ?? (layer.color && layer.color !== "ffffff" ? layer.color : PALETTE[channels.indexOf(layer) % PALETTE.length]);
    } else if (known && layer.kind === "map") Object.assign(own, {low: known.low, high: known.high});
    looks.set(layer.id, {...fresh, ...(known ? {on: known.on, opacity: known.opacity, style: known.style, side: known.side} : {}), ...own});
  }
  return looks;
}

function first(layer, channels, image) {
  if (layer.kind === "channel") return channels.indexOf(layer) < 4;
  if (layer.kind !== "labels") return false;
  return layer === image.layers.find((one) => one.kind === "labels");
}

export function keep(layer, look) { kept.set(`${layer.kind} ${layer.name}`, {...look}); }

// What the tiles of a layer depend on, and how they lie over what is below.
export function request(layer, look, plane) {
  const t = Math.min(plane.t, layer.times - 1), z = Math.min(plane.z, layer.depths - 1);
  const query = layer.kind === "labels" ? {style: look.style} : {low: look.low, high: look.high};
  if (layer.kind === "channel") query.color = look.color;
  return {t, z, query, over: layer.kind === "labels" ? "source-over" : layer.kind === "map" ? "screen" : "lighter"};
}

export function words(layer) {
  if (layer.kind === "labels") return layer.name === "semantic" ? "Classes" : `Objects: ${layer.name}`;
  if (layer.kind === "map") return layer.label;
  return /^\d+$/.test(layer.name) ? `Channel ${layer.name}` : layer.name;
}

export const dtypeTop = (layer) => ({uint8: 255, uint16: 65535, int8: 127, int16: 32767}[layer.dtype] ?? null);
export const colorOf = (name) => state.run.classes.find((one) => one.name === name)?.color ?? null;

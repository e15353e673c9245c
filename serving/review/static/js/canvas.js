// A pane of the viewer: layers of tiles over each other, by OpenSeadragon.
import {named} from "./api.js";

let library = null;
export function openSeadragon() {
  // Loaded when the first image is opened: the gallery does not wait for it.
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "static/vendor/openseadragon.min.js";
    script.onload = () => resolve(window.OpenSeadragon);
    script.onerror = () => reject(new Error("openseadragon cannot be loaded; reload the page"));
    document.head.append(script);
  });
  return library;
}

export function tileUrl(name, layer, look, version) {
  const query = new URLSearchParams(look.query);
  query.set("v", version);
  const suffix = layer.kind === "labels" ? "png" : "webp";
  return (level, x, y) =>
    `api/tiles/${named(name)}/${encodeURIComponent(layer.id)}/${level}/${look.t}/${look.z}/${y}/${x}.${suffix}?${query}`;
}

// Levels of OME-Zarr: ours begin with the finest and need not halve; the library's end with it.
function source(OSD, levels, tile, url) {
  const last = levels.length - 1, of = (level) => levels[last - level], {width, height} = levels[0];
  const made = new OSD.TileSource({width, height, tileSize: tile, tileOverlap: 0, minLevel: 0, maxLevel: last});
  return Object.assign(made, {
    getLevelScale: (level) => of(level).width / width,
    getNumTiles: (level) => new OSD.Point(Math.ceil(of(level).width / tile), Math.ceil(of(level).height / tile)),
    getTileAtPoint: (level, point) => {
      const count = made.getNumTiles(level), at = (share, pixels, most) => Math.min(Math.max(Math.floor((share * pixels) / tile), 0), most - 1);
      return new OSD.Point(at(point.x, of(level).width, count.x), at((point.y * width) / height, of(level).height, count.y));
    },
    getTileBounds: (level, x, y, inPixels) => {
      const size = of(level), w = Math.min(tile, size.width - x * tile), h = Math.min(tile, size.height - y * tile);
      if (inPixels) return new OSD.Rect(0, 0, w, h);
      const down = height / width / size.height;
      return new OSD.Rect((x * tile) / size.width, y * tile * down, w / size.width, h * down);
    },
    getTileUrl: (level, x, y) => url(last - level, x, y),
    equals: (other) => other === made,
  });
}

export class Pane {
  constructor(OSD, element, tile) {
    this.OSD = OSD;
    this.tile = tile;
    this.slots = new Map();
    this.viewer = new OSD.Viewer({
      element, drawer: "canvas", showNavigationControl: false, animationTime: 0.25, visibilityRatio: 0.2, minZoomImageRatio: 0.6,
      maxZoomPixelRatio: 24, imageLoaderLimit: 8, timeout: 60000, gestureSettingsMouse: {clickToZoom: false, dblClickToZoom: true},
      gestureSettingsTouch: {clickToZoom: false, dblClickToZoom: true}, gestureSettingsPen: {clickToZoom: false},
    });
    this.viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
    this.viewer.addHandler("zoom", () => this.sharpen());
  }

  // Pixels are seen as they are when they are large.
  sharpen() {
    const first = this.viewer.world.getItemAt(0);
    if (first) this.viewer.drawer.setImageSmoothingEnabled(first.viewportToImageZoom(this.viewer.viewport.getZoom(true)) < 2);
  }

  // What is to be seen, the lowest first: {layer, url, key, opacity, over}; the same key is the same tiles.
  update(wanted) {
    const ids = new Set(wanted.map((one) => one.layer.id));
    for (const [id, slot] of this.slots) {
      if (!ids.has(id)) { this.drop(slot.next); this.drop(slot.item); this.slots.delete(id); }
    }
    wanted.forEach((one, index) => {
      const slot = this.slots.get(one.layer.id) ?? {item: null, next: null, key: ""};
      this.slots.set(one.layer.id, slot);
      Object.assign(slot, {index, opacity: one.opacity});
      slot.item?.setOpacity(one.opacity);
      if (slot.key !== one.key) this.load(slot, one);
    });
    this.sort();
  }

  load(slot, one) {
    slot.key = one.key;
    const {OSD, viewer} = this;
    viewer.addTiledImage({
      tileSource: source(OSD, one.layer.levels, this.tile, one.url), x: 0, y: 0, width: 1, opacity: one.opacity,
      compositeOperation: one.over, preload: false,
      success: ({item}) => {
        if (slot.key !== one.key || ![...this.slots.values()].includes(slot)) return this.drop(item);
        this.drop(slot.next);
        if (!slot.item) { slot.item = item; slot.next = null; }
        else {
          // The old tiles stay until the new ones are there: nothing flickers while a slider moves.
          slot.next = item;
          const swap = () => {
            if (slot.next !== item) return;
            this.drop(slot.item);
            slot.item = item;
            slot.next = null;
            item.setOpacity(slot.opacity);
          };
          item.getFullyLoaded() ? swap() : item.addHandler("fully-loaded-change", ({fullyLoaded}) => fullyLoaded && swap());
          item.setOpacity(slot.opacity);
        }
        this.sort();
        this.sharpen();
        return undefined;
      },
    });
  }

  drop(item) {
    if (item && this.viewer.world.getIndexOfItem(item) >= 0) this.viewer.world.removeItem(item);
  }

  sort() {
    const {world} = this.viewer;
    let at = 0;
    for (const slot of [...this.slots.values()].sort((a, b) => a.index - b.index)) {
      for (const item of [slot.item, slot.next]) {
        if (item && world.getIndexOfItem(item) >= 0) world.setItemIndex(item, Math.min(at++, world.getItemCount() - 1));
      }
    }
  }

  destroy() { this.viewer.destroy(); }
}

// Two panes show the same place.
export function couple(one, other) {
  let busy = false;
  const follow = (from, to) => () => {
    if (busy) return;
    busy = true;
    to.viewer.viewport.zoomTo(from.viewer.viewport.getZoom(), null, true);
    to.viewer.viewport.panTo(from.viewer.viewport.getCenter(), true);
    busy = false;
  };
  const there = follow(one, other), back = follow(other, one);
  for (const event of ["zoom", "pan"]) {
    one.viewer.addHandler(event, there);
    other.viewer.addHandler(event, back);
  }
  there();
}

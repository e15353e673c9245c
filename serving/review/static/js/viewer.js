// One image of any size with its layers, and the decision on it.
import {html, useCallback, useEffect, useLayoutEffect, useRef, useState} from "../vendor/htm-preact.js";
import {get, named} from "./api.js";
import {Pane, couple, openSeadragon, tileUrl} from "./canvas.js";
import {Verdict, marks, show} from "./card.js";
import {claim, deciding} from "./keys.js";
import {Layers} from "./layers.js";
import {keep, looksOf, request, words} from "./looks.js";
import {WORDS, address, changed, decide, go, state} from "./store.js";

export function Viewer({run}) {
  const [image, setImage] = useState(null), [error, setError] = useState(""), [place, setPlace] = useState(null);
  const {name, list} = state;
  useEffect(() => {
    let gone = false;
    setError("");
    list.position(name).then((at) => { if (!gone) { setPlace(at); if (at !== null) state.selected = at; } }).catch(() => {});
    get(`image/${named(name)}`).then((found) => { if (!gone) setImage(found); }).catch((problem) => { if (!gone) { setImage(null); setError(problem.message); } });
    return () => { gone = true; };
  }, [name, list]);
  const step = useCallback(async (by) => {
    const at = (await list.position(name)) ?? state.selected - by;
    const row = await list.load(at + by);
    if (row) go("image", row.name); else go("gallery");
  }, [name, list]);
  const ready = image?.image.name === name ? image : null;
  useLayoutEffect(() => {
    if (ready && !error) return undefined;
    // One goes on while an image is being opened; decided is on what is seen, be it that it cannot be.
    return claim({j: () => step(1), k: () => step(-1), Escape: () => go("gallery"), ...(error ? deciding(() => ({name}), () => step(1)) : {})});
  });
  return html`<div class="stage">
    <${Bar} name=${name} place=${place} step=${step} />
    ${error ? html`<p class="missing" role="alert">${error}</p>` : ready ? html`<${Shown} key=${name} run=${run} image=${ready} step=${step} />`
      : html`<p class="missing" role="status">Opening ${name} …</p>`}
    ${error && html`<${Aside} run=${run} row=${{name}} step=${step} />`}
  </div>`;
}

function Bar({name, place, step}) {
  const total = state.list.total;
  return html`<nav class="bar" aria-label="Images">
    <a href=${address("gallery")} class="button" title="Back to the gallery (Escape)">← Gallery</a>
    <button onClick=${() => step(-1)} disabled=${place === 0} aria-label="The image before (k)">‹</button>
    <button onClick=${() => step(1)} disabled=${place !== null && place === total - 1} aria-label="The next image (j)">›</button>
    <h2 title=${name}>${name}</h2>
    <span class="soft">${place === null || total === null ? "" : `${(place + 1).toLocaleString("en")} of ${total.toLocaleString("en")}`}</span></nav>`;
}

function Shown({run, image, step}) {
  const [looks, setLooks] = useState(() => looksOf(image)), [plane, setPlane] = useState({t: 0, z: 0});
  const [split, setSplit] = useState(Shown.split ?? false), [values, setValues] = useState(null), panes = useRef([]), boxes = [useRef(null), useRef(null)];
  const most = (key) => Math.max(...image.layers.map((one) => one[key]));
  // Of what is now, also where keys come faster than the page is drawn.
  const change = (layer, part) => setLooks((now) => {
    const known = now.get(layer.id), look = {...known, ...(typeof part === "function" ? part(known) : part)};
    keep(layer, look);
    return new Map(now).set(layer.id, look);
  });

  const [ready, setReady] = useState(0);
  useEffect(() => {
    let gone = false, made = [];
    openSeadragon().then((OSD) => {
      if (gone) return;
      made = boxes.slice(0, split ? 2 : 1).map((box) => new Pane(OSD, box.current, image.tile));
      panes.current = made;
      if (split) couple(...made);
      made.forEach((pane) => pane.viewer.addHandler("canvas-click", ({quick, position}) => quick && ask(pane, position)));
      setReady((count) => count + 1);
    }).catch((problem) => { state.toast = {text: problem.message, error: true}; });
    return () => { gone = true; panes.current = []; made.forEach((pane) => pane.destroy()); };
  }, [split]);
  const at = useRef(plane), spot = useRef(null);
  at.current = plane;
  const ask = (pane, position) => {
    const point = pane.viewer.viewport.pointFromPixel(position), {width, height} = image.layers[0].levels[0];
    const x = point.x, y = (point.y * width) / height, inside = x >= 0 && y >= 0 && x < 1 && y < 1;
    spot.current = inside ? {x, y, place: {x: Math.floor(x * width), y: Math.floor(y * height)}} : null;
    if (inside) tell(); else setValues(null);
  };
  const tell = () => {
    const asked = spot.current, there = at.current;
    // An answer that comes late is of another place or plane by then.
    get(`values/${named(image.image.name)}`, {x: asked.x, y: asked.y, ...there})
      .then((found) => spot.current === asked && at.current === there && setValues({...found, ...asked.place}))
      .catch((problem) => { state.toast = {text: problem.message, error: true}; changed(); });
  };
  useEffect(() => { if (spot.current) tell(); }, [plane]);
  useEffect(() => {
    const timer = setTimeout(() => panes.current.forEach((pane, side) => {
      // Labels lie over maps, and maps over the image.
      const order = {channel: 0, map: 1, labels: 2}, shown = image.layers.filter((one) => {
        const look = looks.get(one.id);
        return look.on && (!split || look.side === "both" || look.side === (side === 1 ? "right" : "left"));
      }).sort((a, b) => order[a.kind] - order[b.kind]);
      pane.update(shown.map((layer) => {
        const look = looks.get(layer.id), how = request(layer, look, plane), url = tileUrl(image.image.name, layer, how, image.version);
        return {layer, url, key: url(0, 0, 0), opacity: look.opacity, over: how.over};
      }));
    }), 60);
    return () => clearTimeout(timer);
  }, [looks, plane, ready]);

  const both = () => {
    Shown.split = !split;
    setSplit(!split);
    // Something is to be seen on the right.
    const maps = image.layers.filter((one) => one.kind === "map"), shown = image.layers.some((one) => looks.get(one.id).on && looks.get(one.id).side !== "left");
    const uncertainty = maps.find((one) => one.uncertainty) ?? maps[0];
    if (!split && !shown && uncertainty) change(uncertainty, {on: true, side: "right"});
  };
  // Before anything is painted: whoever sees the image may decide on it.
  useLayoutEffect(() => {
    const turn = (key, by) => () => setPlane((now) => ({...now, [key]: Math.min(Math.max(now[key] + by, 0), most(key === "z" ? "depths" : "times") - 1)}));
    const numbers = Object.fromEntries(["channel", "labels", "map"].flatMap((kind) => image.layers.filter((one) => one.kind === kind))
      .slice(0, 9).map((layer, index) => [String(index + 1), () => change(layer, (now) => ({on: !now.on}))]));
    return claim({
      j: () => step(1), k: () => step(-1), Escape: () => go("gallery"), s: both, f: () => panes.current[0]?.viewer.viewport.goHome(),
      n: () => document.querySelector("#note")?.focus(), "]": turn("z", 1), "[": turn("z", -1), "}": turn("t", 1), "{": turn("t", -1),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), ArrowLeft: () => pan(-1, 0), ArrowRight: () => pan(1, 0), ArrowUp: () => pan(0, -1), ArrowDown: () => pan(0, 1),
      ...numbers, ...deciding(() => image.image, () => step(1)),
    });
  });
  const zoom = (by) => panes.current[0]?.viewer.viewport.zoomBy(by);
  const pan = (x, y) => {
    const viewport = panes.current[0]?.viewer.viewport, part = viewport && 0.2 / viewport.getZoom();
    viewport?.panBy(new window.OpenSeadragon.Point(x * part, y * part));
  };

  const row = image.image;
  return html`<div class=${split ? "panes split" : "panes"} role="group" aria-label=${`Image ${row.name}`}>
      <div class="pane" ref=${boxes[0]} data-pane="left"></div>${split && html`<div class="pane" ref=${boxes[1]} data-pane="right"></div>`}</div>
    <aside class="side" aria-label="Decision and layers">
      <${Aside} run=${run} row=${row} step=${step} />
      <section class="tools" aria-label="View">
        <button aria-pressed=${split} onClick=${both}>Side by side <kbd>s</kbd></button>
        <button onClick=${() => panes.current[0]?.viewer.viewport.goHome()}>Fit <kbd>f</kbd></button>
        ${[["z", "depths", "Plane z"], ["t", "times", "Time t"]].map(([key, count, word]) => most(count) > 1 && html`
          <label class="wide">${word} <input type="range" min="0" max=${most(count) - 1} value=${plane[key]} aria-label=${word}
            onInput=${(event) => setPlane({...plane, [key]: Number(event.target.value)})} /><output>${plane[key] + 1}/${most(count)}</output></label>`)}
      </section>
      <${Layers} image=${image} looks=${looks} change=${change} split=${split} />
      <section class="values" aria-live="polite" aria-label="Values where you clicked">${values
        ? html`<h3>At y ${values.y}, x ${values.x}</h3><dl>${image.layers.filter((one) => one.id in values.values).map((one) => html`
            <dt>${words(one)}</dt><dd>${values.values[one.id]}${one.unit && ` ${one.unit}`}</dd>`)}</dl>` : html`<p class="soft">Click in the image for its values there.</p>`}</section>
      ${image.notes.map((note) => html`<p class="soft">${note}</p>`)}
    </aside>`;
}

function Aside({run, row, step}) {
  const decided = state.decided.get(row.name), note = useRef(null);
  const act = (kind) => async () => {
    if (await decide(row.name, kind, note.current?.value ?? "")) {
      if (note.current) note.current.value = "";
      step(1);
    }
  };
  return html`<section class="verdicts" aria-label="Decision">
    ${row.flags && html`<p class="said">${marks(row, run).map(([name, label]) => html`<span class=${`chip ${name}`}>${label}</span>`)}</p>
      ${row.reasons.length > 0 && html`<ul class="reasons">${row.reasons.map((reason) => html`<li>${reason}</li>`)}</ul>`}
      ${row.message && html`<p class="soft">${row.message}</p>`}
      <details><summary>Scores</summary><dl>${run.quantities.filter((one) => row.values[one.key] !== null).map((one) => html`
        <dt>${one.label}</dt><dd>${show(row.values[one.key], one.digits)}</dd>`)}</dl></details>`}
    <p><${Verdict} decided=${decided} /></p>
    ${decided?.conflict && html`<ul class="dispute">${decided.verdicts.map((one) => html`<li><b>${one.reviewer === state.reviewer ? "you" : one.reviewer}</b>: ${WORDS[one.decision]}${one.note ? `, “${one.note}”` : ""}</li>`)}</ul>`}
    ${run.writable && html`<div class="buttons">
      <button class="accept" onClick=${act("accept")}>✓ Accept <kbd>a</kbd></button>
      <button class="reject" onClick=${act("reject")}>✕ Reject <kbd>r</kbd></button>
      <button class="correct-later" onClick=${act("correct-later")}>✎ Correct later <kbd>c</kbd></button></div>
    <label class="note">Note <textarea id="note" ref=${note} rows="2" maxlength="2000" placeholder="goes with your decision"></textarea></label>`}
  </section>`;
}

// The ranked gallery: only what is on the screen exists, whatever the number of images.
import {html, useCallback, useEffect, useLayoutEffect, useRef, useState} from "../vendor/htm-preact.js";
import {Card} from "./card.js";
import {claim, deciding} from "./keys.js";
import {go, state} from "./store.js";

const WIDEST = 420, TEXT = 114, GAP = 12;
// Browsers lose precision in taller elements: of more rows the scroll bar is a scale of the list.
const TALLEST = 12e6;

export function Gallery({run}) {
  const box = useRef(null), [size, setSize] = useState([0, 0]), [, scrolled] = useState(0), focus = useRef(null);
  const {list} = state;
  useLayoutEffect(() => {
    const watch = new ResizeObserver(([entry]) => setSize([entry.contentRect.width, entry.contentRect.height]));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const [width, height] = size, total = list.total ?? 0;
  const columns = Math.max(1, Math.floor((width + GAP) / (WIDEST - 80 + GAP)));
  const card = (width - (columns - 1) * GAP) / columns;
  const rowHeight = Math.round(card / 3) + TEXT + GAP, rows = Math.ceil(total / columns);
  const full = rows * rowHeight, shown = Math.min(full, TALLEST);
  const stretch = full > shown && shown > height ? (full - height) / (shown - height) : 1;
  const top = (box.current?.scrollTop ?? 0) * stretch;
  const lead = top - (box.current?.scrollTop ?? 0);  // what the scale has added above
  const from = Math.max(0, Math.floor(top / rowHeight) - 1), to = Math.min(rows, Math.ceil((top + height) / rowHeight) + 1);

  const show = useCallback((index) => {
    // Scroll so that the card is seen, and put the focus on it.
    const line = Math.floor(index / columns), y = line * rowHeight;
    if (y < top) box.current.scrollTop = y / stretch;
    else if (y + rowHeight > top + height) box.current.scrollTop = (y + rowHeight - height) / stretch;
    state.selected = index;
    focus.current = index;
    scrolled((count) => count + 1);
  }, [columns, rowHeight, top, height, stretch]);
  const move = (by) => () => total && show(Math.min(Math.max(state.selected + by, 0), total - 1));

  useEffect(() => {
    const selected = () => list.row(state.selected);
    const own = {
      j: move(1), k: move(-1), ArrowRight: move(1), ArrowLeft: move(-1), ArrowDown: move(columns), ArrowUp: move(-columns),
      Home: () => total && show(0), End: () => total && show(total - 1),
      PageDown: move(columns * Math.max(1, Math.floor(height / rowHeight))),
      PageUp: move(-columns * Math.max(1, Math.floor(height / rowHeight))),
      ...deciding(selected, move(1)),
    };
    if (document.activeElement === document.body) own.Enter = () => selected() && go("image", selected().name);
    return claim(own);
  });
  useEffect(() => {
    // Cards are drawn a moment after the selection moves.
    const link = focus.current === null ? null : box.current.querySelector(`.card.selected[data-index="${focus.current}"] a`);
    if (!link) return;
    link.focus({preventScroll: true});
    focus.current = null;
  });
  // A new query begins at its top; coming back from an image shows where one was.
  const before = useRef(null);
  useLayoutEffect(() => {
    if (!height || list.total === null || before.current === list) return;
    before.current = list;
    const y = Math.floor(state.selected / columns) * rowHeight;
    box.current.scrollTop = state.selected ? Math.max(0, (y - height / 3) / stretch) : 0;
    scrolled((count) => count + 1);
  }, [list, list.total, height]);

  const cards = [];
  for (let line = from; line < to; line++) {
    for (let column = 0; column < columns; column++) {
      const index = line * columns + column;
      if (index >= total) break;
      const place = {left: `${column * (card + GAP)}px`, top: `${line * rowHeight - lead}px`, width: `${card}px`, height: `${rowHeight - GAP}px`};
      cards.push(html`<${Card} key=${index} index=${index} total=${total} row=${list.row(index)} run=${run} place=${place}
        selected=${index === state.selected} select=${() => { state.selected = index; }} />`);
    }
  }
  return html`<div class="scroller" ref=${box} onScroll=${() => scrolled((count) => count + 1)} tabindex="0" role="region"
      aria-label="Images in order">
    ${list.total === 0 && html`<p class="missing">No image fits. Take a filter away to see more.</p>`}
    <ul class="cards" style=${{height: `${shown}px`}}>${cards}</ul></div>`;
}

// The list of all images and the plates. Parts of the data come from the page itself or from scripts in data/.
(() => {
  "use strict";
  const info = JSON.parse(document.getElementById("chorus-data").textContent);
  const element = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // ---- parts ----
  const parts = new Map(), waiting = new Map();
  window.chorusData = (key, value) => waiting.get(key)(value);
  function part(key) {
    if (!parts.has(key)) parts.set(key, info.inline ? Promise.resolve(info.inline[key]) : load(key));
    return parts.get(key);
  }
  function load(key) {
    return new Promise((resolve, reject) => {
      const script = make("script");
      waiting.set(key, (value) => { script.remove(); resolve(value); });
      script.onerror = () => { parts.delete(key); script.remove(); reject(new Error(`data/${key}.js cannot be read`)); };
      script.src = `data/${key}.js`;
      document.head.append(script);
    });
  }
  function unpack(text, kind) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new kind(bytes.buffer);
  }
  const rowsOf = (chunk) => part(`rows-${chunk}`);
  const show = (value, digits) => (value === null ? "–" : value.toFixed(digits));

  // ---- the list ----
  const PAGE = 30, status = element("list-status");
  let order = null, view = null, page = 0, asked = 0;

  function strip(row) {
    const box = make("div", "strip");
    if (!row[2]) return box.append(make("p", "missing", "no thumbnail")), box;
    const image = make("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = `${row[0]}: image, predicted outlines, uncertainty map`;
    image.src = info.thumbnails ? info.thumbnails[row[0]]
      : `thumbnails/${row[0].split("/").map(encodeURIComponent).join("/")}.webp`;
    image.onerror = () => box.replaceChildren(make("p", "missing", "no thumbnail"));
    box.append(image);
    return box;
  }
  function item(row, mark) {
    const line = make("li"), words = make("div"), facts = make("p", "facts"), title = make("h3");
    if (row[1]) title.append(make("span", "rank", row[1]), " ");
    title.append(row[0]);
    words.append(title);
    const raised = [...info.marks.entries()].filter(([bit, name]) => mark & (1 << bit) && name !== "done");
    if (raised.length) {
      const chips = make("p", "chips");
      for (const [bit, name] of raised) chips.append(make("span", `chip ${name}`, info.mark_labels[bit]));
      words.append(chips);
    }
    const said = row[4].length ? row[4] : row[5] ? [row[5]] : [];
    if (said.length) {
      const reasons = make("ul", "reasons");
      for (const reason of said) reasons.append(make("li", "", reason));
      words.append(reasons);
    }
    info.quantities.forEach((quantity, index) => {
      if (!quantity.first || row[3][index] === null) return;
      const fact = make("span", "", `${quantity.label} `);
      fact.append(make("b", "", show(row[3][index], quantity.digits)));
      facts.append(fact);
    });
    words.append(facts);
    line.append(strip(row), words);
    return line;
  }
  async function render() {
    const turn = ++asked, list = element("list"), pages = Math.max(1, Math.ceil(view.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const places = Array.from(view.subarray(page * PAGE, (page + 1) * PAGE));
    try {
      const chunks = [...new Set(places.map((place) => Math.floor(place / info.rows)))];
      const loaded = new Map(await Promise.all(chunks.map(async (chunk) => [chunk, await rowsOf(chunk)])));
      const marks = await marksOf();
      if (turn !== asked) return;
      const lines = places.map((place) =>
        item(loaded.get(Math.floor(place / info.rows))[place % info.rows], marks[place]));
      list.replaceChildren(...lines);
      const first = page * PAGE + 1, number = (value) => value.toLocaleString("en");
      status.textContent = view.length
        ? `${number(first)} to ${number(first + places.length - 1)} of ${number(view.length)} images`
        : "no image fits";
    } catch (error) {
      status.textContent = `${error.message}; keep the folder data beside this page`;
    }
    for (const [id, off] of [["first", !page], ["back", !page], ["next", page >= pages - 1], ["last", page >= pages - 1]])
      element(id).disabled = off;
    element("page").value = page + 1;
    element("page").max = pages;
    element("pages").textContent = `of ${pages.toLocaleString("en")}`;
  }
  let marksKept = null;
  const marksOf = () => (marksKept ??= part("marks").then((text) => unpack(text, Uint16Array)));

  async function matching(text) {
    // Places of the images whose name has the text in it.
    const found = new Uint8Array(info.count), wanted = text.toLowerCase();
    const chunks = Math.ceil(info.count / info.rows), width = 8;
    for (let start = 0; start < chunks; start += width) {
      const some = Array.from({length: Math.min(width, chunks - start)}, (_, index) => start + index);
      const loaded = await Promise.all(some.map(rowsOf));
      loaded.forEach((rows, index) => rows.forEach((row, at) => {
        if (row[0].toLowerCase().includes(wanted)) found[(start + index) * info.rows + at] = 1;
      }));
    }
    return found;
  }
  let search = 0;
  async function choose() {
    const turn = ++search, by = element("sort").value, only = element("only").value, text = element("find").value.trim();
    asked++;
    status.textContent = "looking …";
    try {
      order = by === "" ? Uint32Array.from({length: info.count}, (_, index) => index)
        : unpack(await part(`order-${by}`), Uint32Array);
      const marks = only === "" ? null : await marksOf();
      const named = text ? await matching(text) : null;
      if (turn !== search) return;
      const bit = only === "" ? 0 : 1 << Number(only);
      view = order.filter((place) => (!marks || marks[place] & bit) && (!named || named[place]));
    } catch (error) {
      status.textContent = `${error.message}; keep the folder data beside this page`;
      return;
    }
    page = 0;
    await render();
  }
  function turn(to) {
    page = to;
    render().then(() => element("all").scrollIntoView());
  }
  if (info.count) {
    let later = 0;
    element("sort").onchange = element("only").onchange = choose;
    element("find").oninput = () => { clearTimeout(later); later = setTimeout(choose, 250); };
    element("first").onclick = () => turn(0);
    element("back").onclick = () => turn(page - 1);
    element("next").onclick = () => turn(page + 1);
    element("last").onclick = () => turn(Infinity);
    element("page").onchange = () => turn((Number.parseInt(element("page").value, 10) || 1) - 1);
    choose();
  }

  // ---- plates ----
  const bands = info.colors.map((color) => [1, 3, 5].map((at) => Number.parseInt(color.slice(at, at + 2), 16)));
  function color(value, [low, high]) {
    const at = Math.min(1, Math.max(0, (value - low) / (high - low))) * (bands.length - 1);
    const floor = Math.min(Math.floor(at), bands.length - 2), share = at - floor;
    return `rgb(${bands[floor].map((band, index) => Math.round(band + share * (bands[floor + 1][index] - band))).join()})`;
  }
  async function plate() {
    const which = Number(element("plate").value), score = Number(element("score").value);
    const quantity = info.quantities[score], limits = info.limits[score];
    const content = await part(`plate-${which}`), table = make("table", "plate");
    const wells = new Map(content.wells.map(([row, column, images], index) => [`${row},${column}`, [images, index]]));
    const head = make("tr");
    head.append(make("td"));
    content.columns.forEach((name) => head.append(header(name, "col")));
    const top = make("thead"), body = make("tbody");
    top.append(head);
    content.rows.forEach((row, y) => {
      const line = make("tr");
      line.append(header(row, "row"));
      content.columns.forEach((column, x) => {
        const cell = make("td"), well = wells.get(`${y},${x}`);
        cell.append(make("i"));
        if (well) {
          const value = content.values[score][well[1]];
          const text = `${row}${column}: ${show(value, quantity.digits)}, ${well[0]} image${well[0] === 1 ? "" : "s"}`;
          cell.title = text;
          cell.append(make("span", "unseen", text));
          if (value !== null) cell.style.background = color(value, limits);
        }
        line.append(cell);
      });
      body.append(line);
    });
    table.append(make("caption", "unseen", `${quantity.label} on ${info.plates[which]}, median of each well`), top, body);
    element("wells").replaceChildren(table);
    element("low").textContent = show(limits[0], quantity.digits);
    element("high").textContent = show(limits[1], quantity.digits);
  }
  function header(name, scope) {
    const made = make("th", "", name);
    made.scope = scope;
    return made;
  }
  if (info.plates.length) {
    element("plate").onchange = element("score").onchange = plate;
    plate();
  }
})();

// The images of a query, page by page as they are looked at; 100,000 of them are never here at once.
import {get} from "./api.js";

const PAGE = 60, HELD = 80;

export class List {
  constructor(filters, changed, arrived) {
    Object.assign(this, {filters, changed, arrived, total: null, error: "", log: null});
    this.pages = new Map();
    this.first = this.want(0);
  }

  row(index) {
    const number = Math.floor(index / PAGE), page = this.pages.get(number);
    if (!page) this.want(number);
    return page?.rows?.[index % PAGE] ?? null;
  }

  async load(index) {
    await this.want(Math.floor(index / PAGE));
    return this.row(index);
  }

  want(number) {
    if (number < 0 || (this.total !== null && number * PAGE >= Math.max(this.total, 1))) return Promise.resolve();
    const known = this.pages.get(number);
    if (known) {
      this.pages.delete(number);
      this.pages.set(number, known);  // the one that was used last is the last to go
      return known.promise;
    }
    const page = {rows: null};
    page.promise = this.fetch(number, page);
    this.pages.set(number, page);
    while (this.pages.size > HELD) this.pages.delete(this.pages.keys().next().value);
    return page.promise;
  }

  async fetch(number, page) {
    try {
      const answer = await get("images", {...this.filters, offset: number * PAGE, limit: PAGE, log: this.log});
      this.log ??= answer.log;
      this.total = answer.total;
      this.version = answer.version;
      page.rows = answer.rows;
      this.arrived(answer.rows);
    } catch (error) {
      this.error = error.message;
      this.pages.delete(number);
    }
    this.changed();
  }

  // Where an image is in the list; null where the filters leave it out.
  async position(name) {
    for (const [number, page] of this.pages) {
      const at = page.rows?.findIndex((row) => row.name === name) ?? -1;
      if (at >= 0) return number * PAGE + at;
    }
    return (await get("images", {...this.filters, limit: 0, at: name, log: this.log})).position;
  }
}

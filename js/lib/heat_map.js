// How well each concept is drawn after each task: a table of numbers on a color scale.

import { CellPreview } from "./cell_preview.js";
import { element } from "./elements.js";
import { METRICS, shownNumber } from "./metrics.js";
import { MoreWhenSeen } from "./more_when_seen.js";

const NAME = "continual-lora-sequence";
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** The map with its legend; rows: after each task, columns: concepts. */
export class HeatMap {
  constructor(server, say) {
    this.server = server;
    this.say = say;
    this.preview = new CellPreview(server);
    this.metric = "mmd";
    this.choose = element("select", { "aria-label": "Figure in the table", onchange: () => this.#choose() });
    this.encoder = element("p", { class: `${NAME}-encoder` });
    this.least = element("span");
    this.most = element("span");
    this.columns = element("tr");
    this.body = element("tbody");
    this.caption = element("caption", { class: `${NAME}-spoken` });
    this.end = element("div", { class: `${NAME}-end`, "aria-hidden": "true" });
    const head = element("thead", {}, this.columns);
    const table = element("table", { onkeydown: (event) => this.#move(event) }, this.caption, head, this.body);
    const hide = () => this.preview.hide();
    this.scroller = element("div", { class: `${NAME}-scroll`, onscroll: hide }, table, this.end);
    this.element = element("section", { class: `${NAME}-map`, hidden: true }, this.#head(), this.scroller);
    this.more = new MoreWhenSeen(this.scroller, this.end, () => this.#next());
  }

  #head() {
    const scale = element("span", { class: `${NAME}-scale`, "aria-hidden": "true" });
    this.legend = element("span", { class: `${NAME}-legend` }, this.least, scale, this.most);
    return element("header", { class: `${NAME}-head` }, this.choose, this.legend, this.encoder);
  }

  /** Show an evaluation from its first rows on; `signal` ends it. */
  show(found, signal) {
    this.stop();
    Object.assign(this, { found, signal, concepts: [], cells: [] });
    this.element.hidden = false;
    const corner = element("td", { class: `${NAME}-corner` }, "after task ↓");
    this.columns.replaceChildren(corner);
    this.body.replaceChildren();
    this.encoder.textContent = `Features: ${found.encoder}`;
    this.encoder.title = "The model whose features the numbers come from; compare only numbers of the same one.";
    this.#offer(found.rows);
    this.#add(found.rows);
    if (this.concepts.length < found.num_tasks) this.more.start();
  }

  clear() {
    this.stop();
    this.element.hidden = true;
  }

  stop() {
    this.more.stop();
    this.preview.hide();
  }

  /** Offer those figures that were measured. */
  #offer(rows) {
    const measured = new Set(rows.flatMap(({ cells }) => cells.flatMap((cell) => Object.keys(cell?.scores ?? {}))));
    const names = Object.keys(METRICS).filter((name) => measured.has(name));
    if (!measured.has(this.metric)) this.metric = names[0] ?? "mmd";
    this.choose.replaceChildren(...names.map((value) => element("option", { value }, METRICS[value].title)));
    this.choose.value = this.metric;
  }

  async #next() {
    const { choice, evaluation, num_tasks } = this.found;
    try {
      const page = await this.server.evaluation(choice, evaluation, this.concepts.length + 1, this.signal);
      this.#add(page.rows);
      return page.rows.length > 0 && this.concepts.length < num_tasks;
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message, true);
      return false;
    }
  }

  #add(rows) {
    for (const row of rows) {
      this.concepts.push(row);
      const { concept, after_task } = row;
      this.columns.append(element("th", { scope: "col", title: `${after_task}. ${concept}` }, concept));
    }
    for (const row of rows) {
      const { concept, after_task, cells } = row;
      const title = `after task ${after_task}, ${concept}`;
      const head = element("th", { scope: "row", title }, `${after_task} ${concept}`);
      this.cells.push(cells.map((cell) => cell && this.#cell(row, cell)));
      const drawn = this.cells.at(-1).map((cell) => element("td", {}, cell?.button));
      this.body.append(element("tr", {}, head, ...drawn));
    }
    this.#paint();
  }

  #cell(row, cell) {
    const concept = this.concepts[cell.concept_index - 1];
    const button = element("button", { type: "button", tabindex: "-1" });
    const show = () => this.preview.show(button, { choice: this.found.choice, row, concept, cell });
    button.addEventListener("mouseenter", show);
    button.addEventListener("mouseleave", () => this.preview.hideSoon());
    button.addEventListener("focus", () => {
      this.#reach(button);
      show();
    });
    button.addEventListener("blur", () => this.preview.hide());
    return { button, cell, row, concept };
  }

  #all() {
    return this.cells.flat().filter(Boolean);
  }

  #choose() {
    this.metric = this.choose.value;
    this.#paint();
  }

  /** Numbers and colors of the chosen figure; the more color, the worse. */
  #paint() {
    const { title, better, help } = METRICS[this.metric];
    const values = this.#all().map(({ cell }) => cell.scores[this.metric]).filter((value) => value !== undefined);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const { encoder } = this.found;
    this.caption.textContent = `${title} of each concept after each task; ${better} is better. Features: ${encoder}.`;
    for (const { button, cell, row, concept } of this.#all()) {
      const value = cell.scores[this.metric];
      const share = value === undefined || most === least ? 0 : (value - least) / (most - least);
      button.style.setProperty("--share", better === "lower" ? share : 1 - share);
      button.textContent = value === undefined ? "–" : shownNumber(value);
      const said = value === undefined ? "not measured" : shownNumber(value);
      const place = `${concept.concept} after task ${row.after_task}, ${row.concept}`;
      button.setAttribute("aria-label", `${place}: ${title} ${said}`);
    }
    const [good, bad] = better === "lower" ? [least, most] : [most, least];
    this.least.textContent = values.length ? shownNumber(good) : "";
    this.most.textContent = values.length ? shownNumber(bad) : "";
    this.legend.title = `${help} ${better === "lower" ? "Lower" : "Higher"} is better.`;
    const current = this.#all().find(({ button }) => button.tabIndex === 0) ?? this.#all()[0];
    if (current) current.button.tabIndex = 0;
  }

  /** One cell is reached by Tab; the arrow keys go on from there. */
  #reach(button) {
    for (const cell of this.#all()) cell.button.tabIndex = cell.button === button ? 0 : -1;
  }

  #move(event) {
    if (event.key === "Escape" && this.preview.isOpen) {
      event.stopPropagation();
      this.preview.hide();
      return;
    }
    const step = STEPS[event.key];
    const i = this.cells.findIndex((row) => row.some((cell) => cell?.button === event.target));
    if (!step || i < 0) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas would move
    const j = this.cells[i].findIndex((cell) => cell?.button === event.target);
    this.cells[i + step[0]]?.[j + step[1]]?.button.focus();
  }
}

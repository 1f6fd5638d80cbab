// The pictures behind a number, large, beside the real ones; over the page, next to the cell.

import { element } from "./elements.js";
import { METRICS, shownNumber } from "./metrics.js";

const NAME = "continual-lora-sequence";
const PICTURE_SIDE = 256;
const PATIENCE_MS = 300; // for the pointer to get from the cell into the preview
const GAP = 8;

let numPreviews = 0;

/** How many pictures go side by side: two by two, or up to three rows. */
function columns(count) {
  return count === 4 ? 2 : Math.min(3, count);
}

/** One preview, used for every cell of a map in turn. */
export class CellPreview {
  constructor(server) {
    this.server = server;
    numPreviews += 1;
    this.element = element("div", {
      id: `${NAME}-preview-${numPreviews}`,
      class: `${NAME}-preview`,
      role: "tooltip",
      onmouseenter: () => clearTimeout(this.hiding),
      onmouseleave: () => this.hideSoon(),
    });
  }

  get isOpen() {
    return this.element.isConnected;
  }

  /** Show what is behind `button`. */
  show(button, { choice, row, concept, cell }) {
    this.hide();
    this.owner = button;
    const numbers = Object.entries(METRICS)
      .filter(([name]) => cell.scores[name] !== undefined)
      .map(([name, { title }]) => `${title} ${shownNumber(cell.scores[name])}`);
    const pictures = (title, images, alt) =>
      element("figure", {}, element("figcaption", {}, title), this.#grid(choice, images, alt));
    const more = cell.num_images > cell.images.length ? `, ${cell.images.length} of ${cell.num_images}` : "";
    const after = `after task ${row.after_task}, ${row.concept}`;
    this.element.replaceChildren(
      element("p", { class: `${NAME}-preview-title` }, `${concept.concept} ${after}`),
      element("p", { class: `${NAME}-preview-numbers` }, numbers.join(" · ")),
      element(
        "div",
        { class: `${NAME}-pair` },
        pictures("Real", concept.real_images, `${concept.concept}, real`),
        pictures(`Drawn ${after}${more}`, cell.images, `${concept.concept}, drawn ${after}`),
      ),
    );
    button.setAttribute("aria-describedby", this.element.id);
    document.body.append(this.element);
    this.#place(button);
  }

  hide() {
    clearTimeout(this.hiding);
    this.owner?.removeAttribute("aria-describedby");
    this.owner = null;
    this.element.remove();
  }

  hideSoon() {
    clearTimeout(this.hiding);
    this.hiding = setTimeout(() => this.hide(), PATIENCE_MS);
  }

  #grid(choice, images, alt) {
    if (!images.length) return element("p", {}, "No images on disk.");
    const shown = images.map((name, number) =>
      element("img", { src: this.server.picture(choice, name, PICTURE_SIDE), alt: `${alt}, ${number + 1}` }),
    );
    return element("div", { class: `${NAME}-grid`, style: `--columns: ${columns(images.length)}` }, ...shown);
  }

  /** Beside the panel, so that no other cell is covered; below or above the cell where there is no room. */
  #place(button) {
    const { width, height } = this.element.getBoundingClientRect();
    const panel = button.closest(`.${NAME}`).getBoundingClientRect();
    const cell = button.getBoundingClientRect();
    const right = panel.right + GAP;
    const left = panel.left - GAP - width;
    const isBelow = cell.bottom + GAP + height <= innerHeight || cell.top < innerHeight - cell.bottom;
    let [x, y] = [cell.left, isBelow ? cell.bottom + GAP : cell.top - GAP - height];
    if (right + width <= innerWidth - GAP) [x, y] = [right, cell.top];
    else if (left >= GAP) [x, y] = [left, cell.top];
    this.element.style.left = `${within(x, width, innerWidth)}px`;
    this.element.style.top = `${within(y, height, innerHeight)}px`;
  }
}

/** Where a box of `size` is wholly in a window of `room`, as far as it fits. */
function within(start, size, room) {
  return Math.max(GAP, Math.min(start, room - size - GAP));
}

// The tasks of a sequence side by side: picture, token to copy, how and when each was taught.

import { copyText } from "./copying.js";
import { element } from "./elements.js";
import { MoreWhenSeen } from "./more_when_seen.js";

const NAME = "continual-lora-sequence";
const PICTURE_SIDE = 192;
const CONFIRMED_MS = 1600;
const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const DATE_AND_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });
const STEPS = { ArrowLeft: -1, ArrowRight: 1 };
const UNITS = ["bytes", "KB", "MB", "GB", "TB"];

/** 416631 -> "417 KB". */
function sizeText(numBytes) {
  let [size, unit] = [numBytes, 0];
  while (size >= 1000 && unit < UNITS.length - 1) [size, unit] = [size / 1000, unit + 1];
  return `${unit && size < 10 ? size.toFixed(1) : Math.round(size)} ${UNITS[unit]}`;
}

function counted(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

/** The list; `say` speaks a sentence and shows it. */
export class TaskStrip {
  constructor(server, say) {
    this.server = server;
    this.say = say;
    this.element = element("ol", { class: `${NAME}-strip`, onkeydown: (event) => this.#move(event) });
    this.end = element("li", { class: `${NAME}-end`, "aria-hidden": "true" });
    this.more = new MoreWhenSeen(this.element, this.end, () => this.#next());
  }

  /** Show a sequence from its first page on; `signal` ends it. */
  show(choice, { name, num_tasks, tasks }, signal) {
    this.stop();
    Object.assign(this, { choice, signal, total: num_tasks, shown: 0 });
    this.element.setAttribute("aria-label", `${counted(num_tasks, "concept")} of ${name}, in the order of teaching`);
    this.element.replaceChildren(this.end);
    this.element.scrollLeft = 0;
    this.#add(tasks);
    if (this.shown < this.total) this.more.start();
  }

  stop() {
    this.more.stop();
  }

  async #next() {
    try {
      const page = await this.server.sequence(this.choice, this.shown + 1, this.signal);
      this.#add(page.tasks);
      return page.tasks.length > 0 && this.shown < this.total;
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message, true);
      return false;
    }
  }

  #add(tasks) {
    this.end.before(...tasks.map((task) => this.#card(task)));
    this.shown += tasks.length;
    if (!this.#tokens().some(({ tabIndex }) => tabIndex === 0)) this.#reach(this.#tokens()[0]);
  }

  #tokens() {
    return [...this.element.querySelectorAll(`.${NAME}-token`)];
  }

  /** One token is reached by Tab, however many there are; the arrow keys go on from there. */
  #reach(token) {
    for (const other of this.#tokens()) other.tabIndex = other === token ? 0 : -1;
  }

  #move(event) {
    const tokens = this.#tokens();
    const from = tokens.indexOf(event.target);
    if (!(event.key in STEPS) || from < 0) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas would move
    tokens[from + STEPS[event.key]]?.focus();
  }

  #card(task) {
    const { index, class_noun, recipe, penalty_weight, num_images } = task;
    const penalty = penalty_weight === null ? "no penalty" : `penalty ${penalty_weight}`;
    return element(
      "li",
      { class: `${NAME}-card` },
      this.#picture(task),
      this.#token(task.token),
      line("noun", class_noun),
      line("recipe", recipe),
      line("penalty", penalty),
      line("size", `${counted(num_images, "image")} · ${sizeText(task.num_bytes)}`, "Trained on; size of all its files"),
      element("span", { class: `${NAME}-line` }, written(task.written)),
      task.is_branch ? line("branch", "branch", `Task ${index} is not part of the sequence's newest line.`) : null,
      task.is_complete ? null : line("missing", "files are missing", "Evaluate or apply it to read which."),
    );
  }

  #picture({ index, concept, images }) {
    const spoken = element("span", { class: `${NAME}-spoken` }, "Task ");
    const badge = element("span", { class: `${NAME}-index` }, spoken, String(index));
    const frame = element("span", { class: `${NAME}-picture` }, badge);
    if (!images.length) {
      frame.append(element("span", { class: `${NAME}-no-picture` }, "no image kept"));
      return frame;
    }
    const src = this.server.picture(this.choice, images[0], PICTURE_SIDE);
    const alt = `${concept}, one of the real images`;
    frame.prepend(element("img", { src, alt, title: alt, loading: "lazy", decoding: "async", draggable: false }));
    return frame;
  }

  #token(token) {
    const text = `<${token}>`;
    const label = `Copy the token ${text}`;
    const attributes = { type: "button", class: `${NAME}-token`, tabindex: "-1", title: label, "aria-label": label };
    const button = element("button", attributes, text);
    button.addEventListener("focus", () => this.#reach(button));
    button.addEventListener("click", async () => {
      try {
        await copyText(text);
        this.say(`Copied ${text}`);
        confirm(button, text);
      } catch (error) {
        this.say(`${text} was not copied. ${error.message} Write it by hand.`, true);
      }
    });
    return button;
  }
}

/** Let a button say "copied" for a moment. */
function confirm(button, text) {
  clearTimeout(button.confirmed);
  button.textContent = "✓ copied";
  button.classList.add(`${NAME}-copied`);
  button.confirmed = setTimeout(() => {
    button.textContent = text;
    button.classList.remove(`${NAME}-copied`);
  }, CONFIRMED_MS);
}

function line(kind, text, title = text) {
  return element("span", { class: `${NAME}-line ${NAME}-${kind}`, title }, text);
}

function written(seconds) {
  if (seconds === null) return "no date";
  const date = new Date(seconds * 1000);
  const title = `Its files were written on ${DATE_AND_TIME.format(date)}`;
  return element("time", { datetime: date.toISOString(), title }, DATE.format(date));
}

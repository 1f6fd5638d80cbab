// The concept-sequence panel: the strip of tasks, and below it the heat map of the newest evaluation.

import { element } from "./elements.js";
import { HeatMap } from "./heat_map.js";
import { TaskStrip } from "./task_strip.js";

const NAME = "continual-lora-sequence";
const HEIGHTS = { hint: 64, error: 120, strip: 254, map: 420 };

/** One panel; `onHeight` is called when it needs more or less height than before. */
export class SequenceView {
  constructor(server, hint) {
    this.server = server;
    this.hint = hint;
    this.onHeight = () => {};
    this.leastHeight = 0;
    const say = (text, isError) => this.#say(text, isError);
    this.message = element("p", { class: `${NAME}-message` }, hint);
    this.status = element("p", { class: `${NAME}-status`, role: "status" });
    this.strip = new TaskStrip(server, say);
    this.map = new HeatMap(server, say);
    this.element = element(
      "section",
      // The last class makes older Vue nodes give it the height that is left; newer ones see that it has a least height.
      { class: `${NAME} ${NAME}-only-message widget-expands`, "aria-label": "Concept sequence" },
      this.strip.element,
      this.map.element,
      this.message,
      this.status,
    );
    this.#height(HEIGHTS.hint);
  }

  /** Show a sequence, "name" or "name / task", with one of its evaluations or its newest; "" shows the hint. */
  show(choice, evaluation = "") {
    if (this.asking && choice === this.choice && evaluation === this.evaluation) return;
    this.choice = choice;
    this.evaluation = evaluation;
    this.refresh();
  }

  /** Ask again; what has not changed on the server stays as it is, scrolled and focused. */
  async refresh() {
    this.asking?.abort();
    const asking = new AbortController();
    this.asking = asking;
    if (!this.choice) {
      this.#words(this.hint);
      return;
    }
    try {
      const { choice, evaluation } = this;
      const tasks = await this.server.sequence(choice, 1, asking.signal);
      // A damaged evaluation does not hide the tasks.
      const found = await this.server
        .evaluation(choice, evaluation, 1, asking.signal)
        .catch((error) => ({ evaluation: null, problem: error.message }));
      if (!asking.signal.aborted) this.#fill(choice, tasks, found);
    } catch (error) {
      if (!asking.signal.aborted) this.#words(error.message, true);
    }
  }

  close() {
    this.asking?.abort();
    this.ended?.abort();
    this.strip.stop();
    this.map.stop();
    clearTimeout(this.saying);
  }

  #fill(choice, tasks, found) {
    const shown = JSON.stringify([choice, tasks, found]);
    if (shown === this.shown) return;
    this.#end();
    this.shown = shown;
    this.element.classList.remove(`${NAME}-only-message`);
    this.#write(found.problem ?? "", true);
    this.strip.show(choice, tasks, this.ended.signal);
    if (found.evaluation) this.map.show(found, this.ended.signal);
    else this.map.clear();
    this.#height((found.evaluation ? HEIGHTS.map : HEIGHTS.strip) + (found.problem ? HEIGHTS.error : 0));
  }

  /** A sentence in the place of everything else. */
  #words(text, isError = false) {
    this.#end();
    this.shown = "";
    this.element.classList.add(`${NAME}-only-message`);
    this.#write(text, isError);
    this.#height(isError ? HEIGHTS.error : HEIGHTS.hint);
  }

  #write(text, isError) {
    this.message.classList.toggle(`${NAME}-error`, isError);
    if (isError && text) this.message.setAttribute("role", "alert");
    else this.message.removeAttribute("role");
    this.message.textContent = text;
  }

  /** No more pages of what was shown before. */
  #end() {
    this.ended?.abort();
    this.ended = new AbortController();
    this.strip.stop();
    this.map.stop();
  }

  #height(least) {
    if (least === this.leastHeight) return;
    this.leastHeight = least;
    this.element.style.minHeight = `${least}px`;
    this.onHeight();
  }

  /** Shown and spoken, for a moment unless it is an error. */
  #say(text, isError = false) {
    clearTimeout(this.saying);
    this.status.textContent = text;
    this.status.classList.toggle(`${NAME}-error`, isError);
    if (!isError) this.saying = setTimeout(() => (this.status.textContent = ""), 4000);
  }
}

// The panel of Load Concept Images: small pictures with their captions, and a place to drop more.

import { aboutCount, images as counted, oneLine } from "./concept_words.js";
import { element } from "./elements.js";

const NAME = "continual-lora-concept";
const ACCEPTED = ".png,.jpg,.jpeg,.webp,.bmp,.txt";

/** A box to edit a caption in; saved when it is left and with Ctrl+Enter, Escape brings the saved one back. */
function captionBox(image, save, tell) {
  const box = element("textarea", { value: image.caption, rows: 2, ariaLabel: `Caption of ${image.name}` });
  const state = element("div", { className: `${NAME}-state`, role: "status" });
  let saved = image.caption;
  let queue = Promise.resolve();

  const isChanged = () => oneLine(box.value) !== saved;
  const say = (text, isError = false) => {
    state.textContent = text;
    state.classList.toggle(`${NAME}-error`, isError);
  };
  const store = async () => {
    if (!isChanged()) return;
    const written = box.value;
    say("saving");
    try {
      saved = await save(image.name, saved, written);
      image.caption = saved;
      tell();
      if (box.value === written) box.value = saved;
      say("saved");
    } catch (error) {
      say(`Not saved. ${error.message}`, true);
    }
  };
  const storeInTurn = () => {
    queue = queue.then(store);
  };
  box.addEventListener("blur", storeInTurn);
  box.addEventListener("input", () => say(isChanged() ? "not saved yet" : ""));
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // letters and Ctrl+Enter mean other things on the canvas
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      storeInTurn();
    } else if (event.key === "Escape") {
      box.value = saved;
      say("");
    }
  });
  /** The disk has another caption by now: what is written here stays, and saving it replaces that one. */
  const rebase = () => {
    if (saved === image.caption) return;
    saved = image.caption;
    say(isChanged() ? `On disk it is "${saved}" now. Escape takes that; leaving the box replaces it.` : "");
  };
  return { parts: [box, state], box, isChanged, rebase };
}

/** One image with its caption. */
function card(image, { editable, picture, save }) {
  const size = image.width ? `${image.width} × ${image.height}` : "";
  const view = image.version
    ? element("img", { src: picture, alt: image.name, loading: "lazy", decoding: "async", draggable: false })
    : element("div", { className: `${NAME}-missing`, textContent: "no picture" });
  const label = element("div", { className: `${NAME}-name`, title: `${image.name} ${size}`, textContent: image.name });
  label.ariaHidden = "true"; // the picture says it already
  const figure = element("li", { className: `${NAME}-card` }, view, label);
  if (image.problem) {
    figure.append(element("div", { className: `${NAME}-state ${NAME}-error`, textContent: image.problem }));
    return { image, figure, show: () => {}, isChanged: () => false };
  }
  if (!editable) {
    const text = element("div", { className: `${NAME}-fixed` });
    figure.append(text);
    const show = (prompt) => {
      text.textContent = image.caption || prompt("");
      text.title = `Trained under: ${prompt(image.caption)}`;
    };
    return { image, figure, show, isChanged: () => false };
  }
  let prompt = (caption) => caption;
  const tell = () => {
    Object.assign(box, { placeholder: prompt(""), title: `Trained under: ${prompt(image.caption)}` });
  };
  const { parts, box, isChanged, rebase } = captionBox(image, save, tell);
  figure.append(...parts);
  const show = (newPrompt) => {
    prompt = newPrompt;
    tell();
  };
  return { image, figure, show, isChanged, rebase };
}

const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** The files of a drag or of the clipboard. */
export const filesOf = (transfer) => Array.from(transfer?.files ?? []);
/** Whether a drag has files; which, the browser tells only when they are dropped. */
export const hasFiles = (transfer) => Array.from(transfer?.types ?? []).includes("Files");

export class ConceptPanel {
  /** `take(files)` gets what is dropped or picked. */
  constructor(take) {
    this.cards = [];
    this.prompt = (caption) => caption;
    this.picker = element("input", { type: "file", multiple: true, accept: ACCEPTED, hidden: true });
    this.picker.addEventListener("change", () => {
      take(filesOf(this.picker));
      this.picker.value = "";
    });
    this.button = element("button", { type: "button", textContent: "Add images" });
    this.button.addEventListener("click", () => this.picker.click());
    this.count = element("span", { className: `${NAME}-count` });
    this.message = element("div", { className: `${NAME}-message`, role: "status" });
    this.warning = element("div", { className: `${NAME}-warning` });
    this.hint = element("div", { className: `${NAME}-hint` });
    this.grid = element("ul", { className: `${NAME}-grid`, ariaLabel: "Images of the concept", role: "list" });
    const head = element("div", { className: `${NAME}-head` }, this.button, this.count, this.picker);
    this.element = element(
      "section",
      // The second class is how a Vue node of ComfyUI 0.3 knows which widget gets the room that is left.
      { className: `${NAME} widget-expands`, ariaLabel: "Images of the concept and their captions", tabIndex: -1 },
      ...[head, this.message, this.warning, this.hint, this.grid],
    );
    this.element.dataset.captureWheel = "true";
    this.#acceptDrops(take);
    this.#keepGestures();
  }

  /** Show what the server lists; a caption that is being edited stays as it is. */
  show(folder, { images, total, editable }, { picture, save }) {
    const before = new Map(this.folder === folder ? this.cards.map((item) => [item.image.name, item]) : []);
    this.folder = folder;
    this.cards = images.map((image) => {
      const old = before.get(image.name);
      if (old?.isChanged()) {
        Object.assign(old.image, image);
        old.rebase();
      }
      return old && isSame(old.image, image) ? old : card(image, { editable, picture: picture(image), save });
    });
    // One by one and only where it is not in its place: what is being edited keeps the focus.
    this.cards.forEach(({ figure }, index) => {
      const there = this.grid.children[index];
      if (there !== figure) this.grid.insertBefore(figure, there ?? null);
    });
    while (this.grid.children.length > this.cards.length) this.grid.lastChild.remove();
    this.count.textContent = counted(total) + (total > images.length ? `, the first ${images.length} shown` : "");
    this.warning.textContent = aboutCount(total);
    this.hint.textContent = "";
    this.showPrompt(this.prompt);
  }

  /** Show a sentence in place of images. */
  showNothing(sentence) {
    this.cards = [];
    this.folder = undefined;
    this.grid.replaceChildren();
    this.count.textContent = "";
    this.warning.textContent = "";
    this.hint.textContent = sentence;
  }

  /** `prompt(caption)`: what an image of this caption is trained under. */
  showPrompt(prompt) {
    this.prompt = prompt;
    for (const { show } of this.cards) show(prompt);
  }

  /** Tell what happened, and what went wrong of it. */
  say(sentence, problems = []) {
    const wrong = problems.map((text) => element("div", { className: `${NAME}-error`, textContent: text }));
    this.message.replaceChildren(sentence, ...wrong);
  }
  /** Files that are dropped anywhere on the panel are taken, and not opened by ComfyUI. */
  #acceptDrops(take) {
    const mark = (isOver) => this.element.classList.toggle(`${NAME}-over`, isOver);
    const mine = (event) => {
      if (!hasFiles(event.dataTransfer)) return false;
      event.preventDefault();
      event.stopPropagation();
      return true;
    };
    for (const kind of ["dragenter", "dragover"]) {
      this.element.addEventListener(kind, (event) => mine(event) && mark(true));
    }
    this.element.addEventListener("dragleave", (event) => {
      if (!this.element.contains(event.relatedTarget)) mark(false);
    });
    this.element.addEventListener("drop", (event) => {
      if (!mine(event)) return;
      mark(false);
      take(filesOf(event.dataTransfer));
    });
  }

  /** Scrolling and selecting text in the panel does not move the canvas or the node. */
  #keepGestures() {
    let isOurs = false; // from the press to the release, a Vue node would take the moves for a drag of its own
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      this.element.addEventListener(kind, (event) => {
        if (kind === "pointerdown") isOurs = event.button === 0 && Boolean(event.target.closest("textarea, button"));
        if (isOurs) event.stopPropagation();
        if (event.buttons === 0) isOurs = false;
      });
    }
    this.grid.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && this.grid.scrollHeight > this.grid.clientHeight) event.stopPropagation();
    });
  }
}
